"""Each hook's target and parameters: in the installed SGLang, and in newer ones by their source."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_targets import check_source
from test_hook_targets import USED

from dualpath_sglang import hooks, plugin
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook

install_shims()

NEWER = ("0.5.22", "0.5.23")


def every_hook() -> tuple[Hook, ...]:
    """What the plugin registers in an engine that has all of it, on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        return plugin.hook_table(EngineConfig(hooks="all"))


def test_every_target_fits_the_installed_sglang() -> None:
    assert hooks.check_targets(every_hook()) == []


def test_the_readme_counts_what_is_checked() -> None:
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    fields = sum(map(len, FIELDS.values()))
    counted = f"{len(every_hook())} hooks, {len(USED)} called functions and {fields} fields"
    assert f"of the {counted} checked" in text


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


@pytest.mark.full
@pytest.mark.parametrize("version", NEWER)
def test_what_a_newer_sglang_would_break(version: str, tmp_path: Path) -> None:
    """Not a promise that the rest works: the known breaks are these and no others."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    done = subprocess.run([*command, f"sglang=={version}"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"sglang {version} cannot be downloaded here")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    assert breaks(tmp_path) == KNOWN_BREAKS[version]


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
        "hicache_restored_node",
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

_RESTORE = {"disaggregation/decode.py": "no hicache_restored_node"}
KNOWN_BREAKS: dict[str, dict[str, str]] = {"0.5.22": _RESTORE, "0.5.23": _RESTORE}
"""The README's table of versions says the same."""
