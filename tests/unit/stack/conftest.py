from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_runtime.config import EngineGroup, ModelConfig, StackConfig, StoreConfig
from agent_runtime.stack import preflight as preflight_module
from agent_runtime.stack.commands import Programs

STUB = Path(__file__).with_name("stub_component.py")
# Without site-packages the stub starts in a few milliseconds.
STUB_ARGV = (sys.executable, "-S", str(STUB))


@pytest.fixture
def stubs() -> Programs:
    return Programs(STUB_ARGV, STUB_ARGV, STUB_ARGV, STUB_ARGV, STUB_ARGV)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture
def make_config(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StackConfig]:
    """A stack of stubs: one plain engine and nothing else, unless told otherwise."""
    # These tests are about processes, on machines with or without Mooncake.
    monkeypatch.setattr(preflight_module, "check_mooncake", lambda *_: None)

    def make(**changes: Any) -> StackConfig:
        settings: dict[str, Any] = {
            "model": ModelConfig(path=model),
            "engines": (EngineGroup(role="plain"),),
            "store": StoreConfig(enabled=False, segment_bytes=0),
            "start_router": False,
            "start_renderer": False,
            "run_dir": str(tmp_path / "run"),
            "stop_grace_s": 0.3,
            "start_timeout_s": 20.0,
        }
        return StackConfig(**(settings | changes))

    return make


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Process ids of everything that the test has started and that still lives."""
    tag = str(tmp_path)
    monkeypatch.setenv("STUB_RUN", tag)

    def find() -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.pid != os.getpid() and process.environ().get("STUB_RUN") == tag
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    return find


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where components find room for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder
