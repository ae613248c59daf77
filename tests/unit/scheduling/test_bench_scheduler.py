"""The benchmark of the scheduler on a small fleet: what it writes, and that it can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scheduler import __main__ as bench
from benchmarks.scheduler.placements import Placements, Setup

SMALL = Setup(2, 4, sessions=40)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: float) -> tuple[int, Any]:
    monkeypatch.setattr(bench, "SETUPS", (SMALL,))
    monkeypatch.setattr(bench, "WANTED_PER_S", wanted)
    monkeypatch.setattr(bench, "WANTED_RATIO", 1e9)
    status = bench.main(["--out", str(tmp_path / "out"), "--runs", "2", "--placements", "60"])
    return status, json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize(("wanted", "status"), [(1.0, 0), (1e12, 1)])
def test_the_summary_and_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: float, status: int
) -> None:
    ended, summary = run(tmp_path, monkeypatch, wanted)
    assert ended == status
    assert summary["pass"] is (status == 0)
    (point,) = summary["points"]
    assert (point["engines"], point["sessions"], len(point["runs"])) == (6, 40, 2)
    assert point["placements_per_s"] > 0
    assert 0 < point["us_p50"] <= point["us_p99"]
    assert summary["argmin_us"] > 0
    assert set(summary["planning_us"]) == {"1000", "10000", "100000"}
    assert summary["machine"]["cores"] >= 1


@pytest.mark.parametrize("policy", ["dualpath", "round_robin"])
def test_its_load_is_as_it_says(policy: Any) -> None:
    made = Placements(SMALL, bench.POLICIES[policy], seed=1)
    run = made.run(400)
    assert 0.02 <= run.waited <= 0.1, "about one in twenty waits"
    assert run.reports >= 1
    assert made.fleet.inflight <= 0.6 * 40
