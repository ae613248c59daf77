"""A whole bench with stubs for everything that is started: order, resume, failures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from benchmarks.rig import bench as bench_module
from benchmarks.rig import machines
from benchmarks.rig.arms import ARMS, Job
from benchmarks.rig.bench import Bench, Order
from benchmarks.rig.config import RigConfig
from benchmarks.rig.machines import object_count
from benchmarks.rig.runfile import RUN_SCHEMA
from benchmarks.rig.runner import RunFailed
from dualpath_sglang.contract.errors import ConfigError, StartupError

CONFIG = RigConfig(sessions=2, turns=2, context=200, scale=0.02)
PERCENTILES = {"count": 1, "p50": 1.0, "p90": 1.0, "p99": 1.0}


class StubResource:
    """Stands for the lab and the machines: nothing is made."""

    def __init__(self, *args: Any) -> None:
        self.words = lambda name: ("true",)

    def __enter__(self) -> StubResource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def inside(self, name: str) -> nullcontext[None]:
        return nullcontext()


class StubRunner:
    """Makes results up. `failing` arms have none; after `stop_after` jobs the user interrupts."""

    done: list[str]
    failing: set[str]
    stop_after: int

    def __init__(self, *args: Any) -> None:
        pass

    def run(self, job: Job) -> dict[str, Any]:
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        if job.arm in self.failing:
            raise RunFailed(f"{job.name}: no turn had a plan")
        self.done.append(job.name)
        names = ("turns_per_s", "prompt_tokens", "store_read_bytes", "needed_bytes", "peer_bytes")
        return {
            "schema": RUN_SCHEMA,
            "topology": job.topology,
            "arm": job.arm,
            "index": job.index,
            "digest": CONFIG.digest,
            **dict.fromkeys(names, 1.0),
            "errors": 0,
            "ttft_ms": PERCENTILES,
            "nic_read_bytes": {"p1": 1, "d1": 1},
            "hit_tokens": {"storage": 1},
            "from_storage": 1.0,
            "store_read_source": "plugin",
            "window_turns": 10,
            "config": {
                "hooks": ARMS[job.arm].hooks,
                "shaped": ARMS[job.arm].shaped,
                "sessions": 2,
                "working_set": 100,
                "prefill_pools": {"tokens": 1, "host_tokens": 1, "engines": 1},
                "decode_pools": {"tokens": 1, "host_tokens": 1, "engines": 1},
            },
        }


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    StubRunner.done, StubRunner.failing, StubRunner.stop_after = [], set(), 1000
    monkeypatch.setattr(bench_module, "Lab", StubResource)
    monkeypatch.setattr(bench_module, "Machines", StubResource)
    monkeypatch.setattr(bench_module, "Runner", StubRunner)
    monkeypatch.setattr(bench_module, "make_model", lambda *_, **size: None)
    monkeypatch.setattr(bench_module, "space_of_model", lambda _: None)
    monkeypatch.setattr(bench_module.report, "write", lambda *_: None)
    lone = {"schema": RUN_SCHEMA, "ratio": 1.9, "pairs": 2, "load_over_unshaped": 12.0}

    def measured(runner: StubRunner, pairs: int) -> dict[str, Any]:
        runner.done.append("isolated")
        return lone

    monkeypatch.setitem(bench_module.EXTRAS, "isolated", measured)
    return tmp_path


def a_bench(out: Path, arms: tuple[str, ...], runs: int = 1, isolated: int = 0) -> Bench:
    order = Order(("1P1D",), arms, dict.fromkeys(ARMS, runs), {"isolated": isolated})
    return Bench(CONFIG, order, out, None, lambda _: None)


def on_disk(out: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return tree


def test_a_stopped_bench_keeps_its_runs_and_goes_on(stubbed: Path) -> None:
    StubRunner.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        a_bench(stubbed, ("oracle", "recompute"), runs=2).carry_out(fresh=False)
    assert on_disk(stubbed)["topologies"]["1P1D"]["arms"]["oracle"]["runs"] == 2
    StubRunner.stop_after = 1000
    summary = a_bench(stubbed, ("oracle", "recompute"), runs=2).carry_out(fresh=False)
    names = [f"1P1D/{arm}/{i}" for arm in ("oracle", "recompute") for i in range(2)]
    assert StubRunner.done == names
    assert summary["topologies"]["1P1D"]["arms"]["recompute"]["runs"] == 2
    assert a_bench(stubbed, ("oracle",)).carry_out(fresh=False) == summary
    assert StubRunner.done == names
    a_bench(stubbed, ("oracle",)).carry_out(fresh=True)
    assert StubRunner.done == [*names, "1P1D/oracle/0"]


def test_a_run_without_result_is_reported_and_the_others_go_on(stubbed: Path) -> None:
    StubRunner.failing = {"split"}
    summary = a_bench(stubbed, ("split", "oracle")).carry_out(fresh=False)
    arms = summary["topologies"]["1P1D"]["arms"]
    assert arms["split"] == {"unavailable": "1P1D/split/0: no turn had a plan", "runs": 0}
    assert arms["oracle"]["runs"] == 1


def test_lone_requests_come_while_their_engines_are_up(stubbed: Path) -> None:
    summary = a_bench(stubbed, ("split", "recompute"), isolated=2).carry_out(fresh=False)
    assert StubRunner.done == ["1P1D/split/0", "isolated", "1P1D/recompute/0"]
    assert summary["isolated_ttft_ratio"] == 1.9
    StubRunner.done = []
    a_bench(stubbed, ("split", "recompute"), isolated=2).carry_out(fresh=False)
    assert StubRunner.done == []


def test_runs_of_other_settings_are_not_mixed(stubbed: Path) -> None:
    a_bench(stubbed, ("oracle",)).carry_out(fresh=False)
    order = Order(("1P1D",), ("oracle",), dict.fromkeys(ARMS, 2), {})
    other = Bench(RigConfig(seed=1), order, stubbed, None, lambda _: None)
    with pytest.raises(ConfigError, match="--fresh"):
        other.carry_out(fresh=False)


def test_how_many_objects_the_master_has() -> None:
    text = "# TYPE master_key_count gauge\nmaster_key_count 8143\nmaster_key_count_total 9\n"
    assert object_count(text) == 8143
    assert object_count("") == 0


def router_with(
    monkeypatch: pytest.MonkeyPatch, answers: list[list[dict[str, Any]]]
) -> Callable[[bool], None]:
    """`wait_for_engines` on a stub of the router that gives these answers, the last for ever."""

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert url == "http://r/admin/engines"
        engines = answers.pop(0) if len(answers) > 1 else answers[0]
        return io.BytesIO(json.dumps({"engines": engines}).encode())

    monkeypatch.setattr(machines.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(machines.time, "sleep", lambda _: None)
    monkeypatch.setattr(machines, "ENGINES_TIMEOUT_S", 0.05)
    return lambda plans: machines.wait_for_engines("http://r", plans=plans)


def test_a_router_is_used_when_it_knows_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = {"name": "p1", "healthy": False, "info": None}
    healthy = {"name": "p1", "healthy": True, "info": None}
    full = {"name": "p1", "healthy": True, "info": {"v": 1}}
    answers = [[ill], [healthy], [full]]
    router_with(monkeypatch, answers)(True)
    assert answers == [[full]]
    router_with(monkeypatch, [[ill], [healthy]])(False)
    with pytest.raises(StartupError, match="p1 publishes what plans need"):
        router_with(monkeypatch, [[healthy]])(True)
