"""A room that vanishes under a transfer thread of SGLang: ends the thread as SGLang is, not with
our hooks, and not with the patch."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vanishing_rooms import LOOKS, Threads, ended, installed, vanishing

from dualpath_sglang.transfer_rooms import RoomTable, after_manager_init, around_check_status

PATCHES = Path(__file__).parents[2] / "patches"
FILES = ("common/conn.py", "mooncake/conn.py")


def test_sglang_itself_loses_a_thread() -> None:
    """When this fails, upstream has mended it: the hooks and the patch can go."""
    found = ended(installed(), dict)
    for part in ("transfer, status", "transfer, destinations", "bootstrap, destinations"):
        assert any(name.startswith(part) for name in found), (part, found)
    assert any("Prefill instance with bootstrap_port=0 is dead" in name for name in found)


def test_with_the_hooks_no_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.disaggregation.common.conn import CommonKVManager

    original = CommonKVManager.check_status
    monkeypatch.setattr(
        CommonKVManager,
        "check_status",
        lambda manager, room: around_check_status(original, manager, room),
    )
    assert ended(installed(), RoomTable) == []


def test_the_looks_are_all_that_there_are() -> None:
    threads = Threads(installed(), vanishing(dict, LOOKS), vanishing(dict, LOOKS))
    threads.transfer()
    assert max(threads.manager.request_status.looks, threads.manager.transfer_infos.looks) < LOOKS


def test_a_manager_has_the_table_before_its_threads() -> None:
    class Manager:
        """`CommonKVManager.__init__` of a prefill engine."""

        def __init__(self) -> None:
            self.transfer_infos: dict[int, dict[str, str]] = {1: {"session": "info"}}

    manager = Manager()
    after_manager_init(None, manager)
    assert manager.transfer_infos == {1: {"session": "info"}}
    assert manager.transfer_infos[2] == {}
    assert 2 not in manager.transfer_infos
    assert manager.transfer_infos.pop(2) is None
    after_manager_init(None, object())


@functools.cache
def patches() -> list[Path]:
    import sglang

    return sorted((PATCHES / sglang.__version__).glob("*.patch"))


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """SGLang's source, installed, with all patches applied."""
    import sglang

    source = Path(sglang.__file__).parent / "srt/disaggregation"
    target = tmp_path / "sglang/srt/disaggregation"
    for file in FILES:
        (target / file).parent.mkdir(parents=True)
        shutil.copy(source / file, target / file)
    for patch in patches():
        command = ["git", "apply", "-p2", "--whitespace=error-all", str(patch)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (patch.name, done.stderr)
    return target


def test_with_the_patch_no_thread_ends(patched: Path) -> None:
    script = Path(__file__).with_name("vanishing_rooms.py")
    command = [sys.executable, str(script), *(str(patched / file) for file in FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_patch_says_what_and_why() -> None:
    assert patches()
    for patch in patches():
        text = patch.read_text(encoding="utf-8")
        assert text.startswith("Subject: ")
        assert text.count("\n--- a/python/sglang/") == text.count("\n+++ b/python/sglang/") > 0
