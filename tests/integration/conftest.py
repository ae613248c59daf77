"""What the tests on real engines share (at most four engines at a time).

`DUALPATH_TEST_TRACES` names a folder with agent traces; by default it is looked for beside the
checkout. Without traces the sessions are generated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks import pair_config, plain_engine

from agent_runtime.stack.stack import RunningStack, Stack

BESIDE = Path(__file__).parents[2].parent / "shared" / "traces"
TRACES = Path(os.environ.get("DUALPATH_TEST_TRACES") or BESIDE)


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
def swebench() -> Path:
    """The trace's file; it may not be there."""
    return TRACES / "swebench-gemini3.dev.counts.jsonl"


@pytest.fixture(scope="session")
def pair(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One prefill and one decode engine with everything DualPath adds."""
    with Stack(pair_config(model_dir, tmp_path_factory.mktemp("pair"))).start() as stack:
        yield stack


@pytest.fixture(scope="session")
def reference(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with plain_engine(model_dir, tmp_path_factory.mktemp("reference")) as url:
        yield url
