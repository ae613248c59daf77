"""Settings that the second path refuses: all of them in one go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.secondpath.checks import advice, unsupported

RIGHT: dict[str, Any] = {
    "disaggregation_mode": "decode",
    "tp_size": 1,
    "dp_size": 1,
    "pp_size": 1,
    "attn_cp_size": 1,
    "dcp_size": 1,
    "attn_dp_size": 1,
    "enable_hierarchical_cache": True,
    "hicache_storage_backend": "mooncake",
    "hicache_mem_layout": "page_first_direct",
    "hicache_host_memory_mode": "cache",
    "hicache_write_policy": "write_through",
    "hicache_storage_prefetch_policy": "wait_complete",
    "disable_radix_cache": False,
    "radix_cache_backend": "dualpath",
    "disaggregation_transfer_backend": "mooncake",
    "disaggregation_decode_enable_radix_cache": True,
    "disaggregation_decode_retraction_backup": "cpu_tensor",
    "disaggregation_decode_host_receive_threshold": 1.0,
    "optimistic_prefill_attempts": 0,
    "enable_pd_role_switch": False,
    "disaggregation_decode_enable_offload_kvcache": False,
    "enable_lora": None,
    "speculative_algorithm": None,
    "enable_lmcache": False,
    "enable_flexkv": False,
    "enable_unified_cache_external_linker": False,
    "enable_session_radix_cache": False,
    "enable_unified_memory": False,
    "enable_streaming_session": False,
}


def found(**changes: Any) -> list[str]:
    return unsupported(RIGHT | changes, None)


def test_the_supported_settings_pass() -> None:
    assert found() == []
    assert found(disaggregation_mode="prefill") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tp_size", 2),
        ("dp_size", 2),
        ("pp_size", 2),
        ("attn_cp_size", 2),
        ("dcp_size", 2),
        ("attn_dp_size", 2),
        ("enable_hierarchical_cache", False),
        ("hicache_storage_backend", None),
        ("hicache_storage_backend", "file"),
        ("hicache_mem_layout", "layer_first"),
        ("hicache_host_memory_mode", "buffer_only"),
        ("hicache_write_policy", "write_back"),
        ("hicache_write_policy", "write_through_selective"),
        ("hicache_storage_prefetch_policy", "best_effort"),
        ("disable_radix_cache", True),
        ("radix_cache_backend", None),
        ("disaggregation_transfer_backend", "nixl"),
        ("disaggregation_decode_enable_radix_cache", False),
        ("disaggregation_decode_retraction_backup", "host_pool"),
        ("disaggregation_decode_host_receive_threshold", 0.5),
        ("disaggregation_decode_host_receive_threshold", 0),
        ("optimistic_prefill_attempts", 1),
        ("enable_pd_role_switch", True),
        ("disaggregation_decode_enable_offload_kvcache", True),
        ("enable_lora", True),
        ("speculative_algorithm", "EAGLE"),
        ("enable_lmcache", True),
        ("enable_flexkv", True),
        ("enable_unified_cache_external_linker", True),
        ("enable_session_radix_cache", True),
        ("enable_unified_memory", True),
        ("enable_streaming_session", True),
    ],
)
def test_each_unsupported_setting_is_named(name: str, value: Any) -> None:
    problems = found(**{name: value})
    assert len(problems) == 1
    assert name in problems[0]


def test_a_setting_that_is_gone_is_no_setting_that_is_off() -> None:
    gone = {name: value for name, value in RIGHT.items() if name != "attn_dp_size"}
    with pytest.raises(StartupError, match="no setting 'attn_dp_size'"):
        unsupported(gone, None)


def test_all_are_listed_at_once() -> None:
    assert len(found(tp_size=4, enable_lora=True, hicache_write_policy="write_back")) == 3


def controller(storage: bool = True) -> SimpleNamespace:
    return SimpleNamespace(enable_storage=storage)


def cache(**changes: Any) -> SimpleNamespace:
    parts: dict[str, Any] = {
        "tree_components": (SimpleNamespace(name="FULL"),),
        "sidecar_pool_specs": [],
        "tree_core": SimpleNamespace(is_eagle=False),
        "cache_controller": controller(),
    }
    return SimpleNamespace(**parts | changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"tree_components": (SimpleNamespace(name="FULL"), SimpleNamespace(name="SWA"))}, "SWA"),
        ({"sidecar_pool_specs": [1]}, "side pools"),
        ({"tree_core": SimpleNamespace(is_eagle=True)}, "pairs of tokens"),
        ({"cache_controller": None}, "no host pool"),
        ({"cache_controller": controller(storage=False)}, "no store"),
    ],
)
def test_the_built_cache_is_looked_at(change: dict[str, Any], said: str) -> None:
    problems = unsupported(RIGHT, cache(**change))
    assert len(problems) == bool(said)
    assert said in "".join(problems)


def test_a_small_host_pool_is_warned_of() -> None:
    assert advice(host_tokens=2_000, device_tokens=1_000) == ""
    assert "--hicache-ratio" in advice(host_tokens=1_999, device_tokens=1_000)
