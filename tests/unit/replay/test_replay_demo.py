"""The demo's steps and exit status, with a stub in place of the stack."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from replay_stub_router import StubEngine, StubRouter, served

from agent_runtime.config import StackConfig
from agent_runtime.stack.layout import port_requests
from agent_runtime.stack.validate import validate
from benchmarks import testmodel
from benchmarks.replay import demo
from benchmarks.replay.results import read_result
from dualpath_sglang.contract.errors import StartupError

pytestmark = pytest.mark.timeout(60)


class StubStack:
    """`with StubStack(config).start() as running`: stub servers instead of processes."""

    router = StubRouter()
    engine = StubEngine()
    started: list[StackConfig] = []  # noqa: RUF012 -- one list for the test to look at
    stopped = 0

    def __init__(self, config: StackConfig, on_event: Any = None) -> None:
        validate(config)
        self.config = config
        self._servers = ExitStack()

    def start(self) -> StubStack:
        self.started.append(self.config)
        self.router_url = self._servers.enter_context(served(self.router.app()))
        self._engine_url = self._servers.enter_context(served(self.engine.app()))
        return self

    def url(self, name: str) -> str:
        assert name in {request.key.split(".")[0] for request in port_requests(self.config)}
        return self._engine_url

    def __enter__(self) -> StubStack:
        return self

    def __exit__(self, *error: object) -> None:
        type(self).stopped += 1
        self._servers.close()


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[StubStack]]:
    made = type("Stack", (StubStack,), {"router": StubRouter(), "engine": StubEngine()})
    made.started, made.stopped = [], 0
    monkeypatch.setattr(demo, "Stack", made)
    monkeypatch.setattr(demo, "SETTLE_S", 0.0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 600}))
    (tmp_path / "model" / "model.safetensors").touch()
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def arguments(out: Path) -> list[str]:
    return ["--out", str(out), "--scale", "0.01"]


def test_a_good_demo(stack: type[StubStack], tmp_path: Path) -> None:
    stack.router.storage = 3
    assert demo.main(arguments(tmp_path)) == 0
    result = read_result(tmp_path)
    assert (result["sessions"], result["turns"], result["compared_turns"]) == (6, 48, 48)
    assert (result["errors"], result["outputs_equal"]) == (0, True)
    assert result["cached_tokens"]["storage"] == 144
    assert stack.router.log.count(("flush",)) == 1
    assert [stop["after_turn"] for stop in result["midway"]] == [4]
    assert stack.stopped == 2
    pair, plain = stack.started
    assert [group.role for group in pair.engines] == ["prefill", "decode"]
    assert [group.role for group in plain.engines] == ["plain"]
    assert not plain.store.enabled
    assert (tmp_path / "report.html").exists()


def test_no_store_hits_is_a_failure(
    stack: type[StubStack], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(arguments(tmp_path)) == 1
    assert "nothing was read from the store" in capsys.readouterr().err


def test_a_wrong_token_is_a_failure(
    stack: type[StubStack], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.router.storage = 3
    stack.engine.wrong = set(range(100, 130))
    assert demo.main(arguments(tmp_path)) == 1
    assert "outputs differ" in capsys.readouterr().err


def test_a_failed_turn_is_a_failure_and_the_stack_stops(
    stack: type[StubStack], tmp_path: Path
) -> None:
    stack.router.faults = {3: "event"}
    assert demo.main(arguments(tmp_path)) == 1
    assert stack.stopped == 2


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (StartupError("prefill0 ended"), 2)]
)
def test_interrupt_and_start_up_failure(
    stack: type[StubStack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
) -> None:
    async def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(demo, "run_replay", fails)
    assert demo.main(arguments(tmp_path)) == status
    assert stack.stopped == 1


def test_the_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def stub_run(words: list[str], **kwargs: object) -> SimpleNamespace:
        calls.append(words)
        return SimpleNamespace(returncode=0 if len(calls) == 1 else 1, stderr="no space left")

    monkeypatch.setattr(testmodel.subprocess, "run", stub_run)
    testmodel.make_model(tmp_path, print, kv_heads=1)
    command = ["-m", "dualpath_sglang.testmodel", "--out", str(tmp_path), "--kv-heads", "1"]
    assert calls[0][1:] == command
    with pytest.raises(StartupError, match="no space left"):
        testmodel.make_model(tmp_path, print)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StartupError, match="no space left"):
        testmodel.make_model(tmp_path, print)
    (tmp_path / "model.safetensors").touch()
    testmodel.make_model(tmp_path, print)
    assert len(calls) == 3
