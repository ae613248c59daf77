"""Each hook's target and parameters in the installed SGLang, by import and by its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from source_targets import check_source
from test_hook_targets import USED

from dualpath_sglang import hooks, plugin
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook

install_shims()


def every_hook() -> tuple[Hook, ...]:
    """What the plugin registers in an engine that has all of it, on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        return plugin.hook_table(EngineConfig(hooks="all"))


def test_every_target_fits_the_installed_sglang() -> None:
    assert hooks.check_targets(every_hook()) == []


def test_every_hook_says_why() -> None:
    assert all(len(hook.why) > 10 for hook in every_hook())


def test_reading_the_source_finds_the_same_as_importing() -> None:
    import sglang

    root = Path(sglang.__file__).parents[1]
    assert [f for f in check_source(root, every_hook()) if f.problem] == []
    wrong = (
        Hook("sglang.srt.managers.scheduler.Scheduler.no_such_method", "after", print, "test"),
        Hook("sglang.srt.no_such_module.f", "after", print, "test"),
        Hook(every_hook()[0].target, "replace", print, "test", ("no_such_parameter",)),
    )
    found = [f.problem for f in check_source(root, wrong)]
    assert found == ["is gone", "is gone", "lost parameter no_such_parameter"]


def breaks(root: Path) -> dict[str, str]:
    """What would not fit a SGLang below `root`: hooks, calls, fields."""
    called = [Hook(target, "after", print, "called", names) for target, names in USED.items()]
    found = {f.target: f.problem for f in check_source(root, (*every_hook(), *called)) if f.problem}
    for file, names in FIELDS.items():
        path = root / "sglang/srt" / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        gone = [name for name in names if not re.search(rf"\b{name}\b", text)]
        if gone:
            found[file] = f"no {', '.join(gone)}"
    return found


def test_nothing_breaks_with_the_installed_sglang() -> None:
    import sglang

    assert breaks(Path(sglang.__file__).parents[1]) == {}


FIELDS: dict[str, tuple[str, ...]] = {
    "managers/cache_controller.py": (
        "prefetch_tokens_occupied",
        "prefetch_threshold",
        "host_mem_release_queue",
    ),
    "mem_cache/pool_host/base.py": ("free_slots", "release_slots"),
    "mem_cache/unified_cache/unified_tree_core.py": ("component_data",),
    "disaggregation/decode.py": (
        "waiting_for_input",
        "prefix_match",
        "hicache_restore_lock",
        "hicache_restored_kv_indices",
        "hicache_restore_status",
    ),
    "disaggregation/decode_hicache_mixin.py": (
        "l1_prefix_len",
        "l2_host_hit_length",
        "l3_storage_hit_length",
        "decode_prefix_len",
    ),
    "managers/schedule_batch.py": (
        "cached_tokens_device",
        "cached_tokens_host",
        "cached_tokens_storage",
        "customized_info",
        "cache_request_handle",
        "kv_hints",
        "bootstrap_room",
    ),
    "mem_cache/unified_radix_cache.py": (
        "ongoing_prefetch",
        "ongoing_write_through",
        "ongoing_load_back",
        "publish_node_ids",
        "prefetch_loaded_tokens_by_reqid",
        "storage_prefetch_retries",
        "tree_core",
    ),
    "mem_cache/storage/mooncake_store/mooncake_store.py": ("mha_suffix", "mla_suffix"),
}
"""Names of fields that the plugin reads or sets, by the file that has them."""
