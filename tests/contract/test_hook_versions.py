"""Each hook's target and parameters: in the installed SGLang, and in newer ones by their source."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_targets import check_source

from dualpath_sglang import hooks, metrics, report, store_guard
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook
from dualpath_sglang.plugin import VERIFY_HOOK
from dualpath_sglang.secondpath.table import SECOND_PATH_HOOKS

install_shims()

NEWER = ("0.5.22", "0.5.23")


def every_hook() -> tuple[Hook, ...]:
    from dualpath_sglang.cpu.hooks import CPU_HOOKS

    ours = metrics.METRIC_HOOKS + report.REPORT_HOOKS + SECOND_PATH_HOOKS
    return (*CPU_HOOKS, *store_guard.STORE_HOOKS, VERIFY_HOOK, *ours)


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


@pytest.mark.full
@pytest.mark.parametrize("version", NEWER)
def test_what_a_newer_sglang_would_break(version: str, tmp_path: Path) -> None:
    """Not a promise that it works: the known breaks are these and no others."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    done = subprocess.run([*command, f"sglang=={version}"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"sglang {version} cannot be downloaded here")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    broken = {f.target: f.problem for f in check_source(tmp_path, every_hook()) if f.problem}
    assert broken == KNOWN_BREAKS[version]


KNOWN_BREAKS: dict[str, dict[str, str]] = {"0.5.22": {}, "0.5.23": {}}
"""Published in the README's table of versions."""
