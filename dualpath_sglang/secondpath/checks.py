"""Settings that the second path does not work with, all found in one go.

With them pages would be wrong, promises broken or requests stuck; so an engine refuses to start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.sglang_types import HybridCacheController, UnifiedRadixCache

LAYOUTS = ("page_first_direct", "page_first")
POLICIES = ("wait_complete", "timeout")
LEAST_RATIO = 2.0
"""Host pool over device pool: prefetches may take half of it, pins a quarter."""


def unsupported(settings: Mapping[str, Any], cache: UnifiedRadixCache | None) -> list[str]:
    """Every violation, a sentence each. `settings`: SGLang's, by field name, as it resolved them.
    `cache`: as built; none: not looked at.

    Raises StartupError where this SGLang has no setting of a name that is checked.
    """
    try:
        found = _parallelism(settings) + _cache_settings(settings) + _other_features(settings)
    except KeyError as error:
        raise StartupError(
            f"DualPath: this SGLang has no setting {error}, which has to be checked: it is another "
            "release than the one this project is made for"
        ) from error
    if cache is not None:
        found += _live_cache(cache)
    return found


def advice(host_tokens: int, device_tokens: int) -> str:
    """What works, but badly; empty if nothing does."""
    if host_tokens >= LEAST_RATIO * device_tokens:
        return ""
    return (
        f"the host pool has {host_tokens} tokens, {host_tokens / device_tokens:.1f}x the device's "
        f"{device_tokens}: below {LEAST_RATIO:.0f}x staged pages crowd out the cache "
        "(--hicache-ratio, --hicache-size)"
    )


def _parallelism(settings: Mapping[str, Any]) -> list[str]:
    limits = {
        "tp_size": "tensor parallelism (one verdict for all ranks is not built)",
        "dp_size": "data parallelism (a plan names no rank)",
        "attn_dp_size": "DP attention (each rank has its own pool)",
        "pp_size": "pipeline parallelism (prefetches go another way)",
        "attn_cp_size": "context parallelism",
        "dcp_size": "decode context parallelism",
    }
    return [
        f"{name} is {settings[name]}: {why} needs 1"
        for name, why in limits.items()
        if (settings[name] or 1) > 1
    ]


def _cache_settings(settings: Mapping[str, Any]) -> list[str]:
    wanted: dict[str, tuple[Any, ...]] = {
        "enable_hierarchical_cache": (True,),
        "hicache_storage_backend": ("mooncake",),
        "hicache_mem_layout": LAYOUTS,
        "hicache_host_memory_mode": ("cache",),
        "hicache_write_policy": ("write_through",),
        "hicache_storage_prefetch_policy": POLICIES,
        "disable_radix_cache": (False,),
        "radix_cache_backend": ("dualpath",),
        "disaggregation_transfer_backend": ("mooncake",),
    }
    if settings["disaggregation_mode"] == "decode":
        wanted["disaggregation_decode_enable_radix_cache"] = (True,)
        wanted["disaggregation_decode_retraction_backup"] = (None, "cpu_tensor")
    return [
        f"{name} is {settings[name]!r}, not {' or '.join(map(repr, values))}"
        for name, values in wanted.items()
        if settings[name] not in values
    ]


def _other_features(settings: Mapping[str, Any]) -> list[str]:
    off = {
        "optimistic_prefill_attempts": "a request would come back under another key",
        "enable_pd_role_switch": "it clears caches under running pulls",
        "disaggregation_decode_enable_offload_kvcache": "it has a host pool of its own",
        "enable_lora": "an adapter's page keys differ from process to process",
        "speculative_algorithm": "its pages are keyed another way",
        "enable_lmcache": "another cache class",
        "enable_flexkv": "another cache class",
        "enable_unified_cache_external_linker": "another cache class",
        "enable_session_radix_cache": "plans do not travel with sessions",
        "enable_unified_memory": "its pools move pages while they serve",
        "enable_streaming_session": "plans do not travel with sessions",
    }
    found = [f"{name}: {why}" for name, why in off.items() if settings[name]]
    threshold = settings["disaggregation_decode_host_receive_threshold"]
    if threshold < 1:
        found.append(
            f"disaggregation_decode_host_receive_threshold is {threshold}: no backend supports "
            "anything but 1 (off)"
        )
    return found


def _live_cache(cache: UnifiedRadixCache) -> list[str]:
    """What can be seen at the built cache only."""
    found = []
    names = [component.name for component in cache.tree_components]
    if names != ["FULL"]:
        found.append(f"the model's cache has the parts {names}: only full attention is supported")
    if cache.sidecar_pool_specs:
        found.append("the model keeps more than K and V for a page (side pools)")
    if cache.tree_core.is_eagle:
        found.append("pages are keyed by pairs of tokens")
    controller = cast("HybridCacheController | None", cache.cache_controller)
    if controller is None:
        found.append("there is no host pool (--enable-hierarchical-cache)")
    elif not controller.enable_storage:
        found.append("the engine has no store")
    return found
