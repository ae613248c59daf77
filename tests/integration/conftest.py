"""Real engines, store, renderer and router, shared by all tests of a run (at most four engines).

`DUALPATH_TEST_TRACES` names a folder with agent traces; by default it is looked for beside the
checkout. Without traces the sessions are generated.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_runtime.config import (
    EngineGroup,
    ExitPolicies,
    ModelConfig,
    RouterConfig,
    StackConfig,
    StoreConfig,
)
from agent_runtime.stack.stack import RunningStack, Stack

TRACES = Path(
    os.environ.get("DUALPATH_TEST_TRACES") or Path(__file__).parents[2].parent / "shared" / "traces"
)
SWEBENCH = TRACES / "swebench-gemini3.dev.counts.jsonl"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts engines: marked, and with room for a slow machine."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default test model: float32, greedy gaps far above rounding."""
    folder = tmp_path_factory.mktemp("model") / "test-model"
    command = [sys.executable, "-m", "dualpath_sglang.testmodel", "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def pair_config(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StackConfig:
    """One prefill and one decode engine, store, renderer and router; engines come back."""
    return StackConfig(
        model=ModelConfig(path=str(model_dir)),
        cpu=True,
        dtype="float32",
        router=RouterConfig(turn_deadline_s=60.0),
        on_child_exit=ExitPolicies(
            master="stop", store="keep", engines="restart", renderer="restart", router="restart"
        ),
        max_restarts=20,
        run_dir=str(tmp_path_factory.mktemp("pair")),
    )


@pytest.fixture(scope="session")
def pair(pair_config: StackConfig) -> Iterator[RunningStack]:
    with Stack(pair_config).start() as stack:
        yield stack


@contextlib.contextmanager
def plain_engine(model_dir: Path, run_dir: Path) -> Iterator[str]:
    """The URL of one ordinary engine that computes every prompt from its first token."""
    config = StackConfig(
        model=ModelConfig(path=str(model_dir)),
        cpu=True,
        dtype="float32",
        store=StoreConfig(enabled=False),
        engines=(EngineGroup(role="plain", name="reference", flags={"disable-radix-cache": True}),),
        start_router=False,
        start_renderer=False,
        run_dir=str(run_dir),
    )
    with Stack(config).start() as stack:
        yield stack.url("reference")


@pytest.fixture(scope="session")
def reference(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with plain_engine(model_dir, tmp_path_factory.mktemp("reference")) as url:
        yield url


@pytest.fixture(scope="session")
def swebench() -> Path:
    """The trace's file; it may not be there."""
    return SWEBENCH


@pytest.fixture(scope="session")
def restart_cold(pair: RunningStack) -> Callable[[], None]:
    """Kill both engines at once and wait until the supervisor has brought them back."""

    def restart() -> None:
        names = [engine.name for engine in pair.engines]
        before = {name: pair.component(name).restarts for name in names}
        for name in names:
            pair.kill(name)
        for name in names:
            pair.wait_for(name, "ready", 180.0, restarts=before[name] + 1)

    return restart
