"""The search for the highest rate: on a made-up stack, and over HTTP against the stub router."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from replay_stub_router import StubRouter, served

from agent_runtime.cli import main as dualpath
from benchmarks.replay.plan import Goodput
from benchmarks.replay.probes import Missed, Watch
from benchmarks.replay.records import Failure, TurnRecord
from benchmarks.replay.results import read_result, read_tokens
from benchmarks.replay.search import MOST_PROBES, RESOLUTION, Outcome, search
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, Turn


class MadeUp:
    """Keeps its promise up to `limit`; `sessions` of `seconds` each."""

    def __init__(self, limit: float, sessions: int = 50, seconds: float = 10.0) -> None:
        self.limit, self.sessions, self.seconds = limit, sessions, seconds
        self.rates: list[float] = []

    async def probe(self, rate: float) -> Outcome:
        self.rates.append(rate)
        at_once = self.sessions / rate < 0.1 * self.seconds
        return Outcome(rate, rate <= self.limit, at_once, rate * self.seconds, {})


@given(st.floats(-2, 2), st.floats(-2, 2))
async def test_the_limit_is_found_within_the_resolution(limit: float, first: float) -> None:
    """From anywhere, in few probes; unless it lies where a rate says nothing."""
    stack = MadeUp(10**limit, sessions=10**18, seconds=1e9)
    found = await search(10**first, stack.probe)
    assert found.reason == "found"
    assert found.rate_per_s is not None
    assert found.rate_per_s <= stack.limit < found.rate_per_s * RESOLUTION
    assert len(set(stack.rates)) == len(stack.rates)


async def test_a_limit_above_all_sessions_at_once() -> None:
    stack = MadeUp(limit=1e9)
    found = await search(1.0, stack.probe)
    assert (found.reason, found.rate_per_s) == ("all_at_once", stack.rates[-1])
    assert 50 <= stack.rates[-1] <= 100


async def test_a_stack_that_is_never_good_enough() -> None:
    stack = MadeUp(limit=0.0)
    found = await search(1.0, stack.probe)
    assert (found.reason, found.rate_per_s) == ("never", None)
    assert stack.rates[-1] == 1 / 64


async def test_the_number_of_probes_is_bounded() -> None:
    stack = MadeUp(limit=1e-30, seconds=1e40)
    found = await search(1.0, stack.probe)
    assert (found.reason, found.rate_per_s, len(found.probes)) == ("probes", None, MOST_PROBES)


def record(sid: str, turn: int, ttft_ms: float = 10.0, failed: bool = False) -> TurnRecord:
    error = Failure("timeout", "late") if failed else None
    made = TurnRecord(sid, turn, 0, 1, 2, float(turn), 0.0, ttft_ms=ttft_ms, e2e_ms=500.0)
    return replace(made, error=error)


def test_a_probe_is_over_once_too_many_turns_are_bad() -> None:
    sessions = [Session("d", sid, tuple(Turn(i, 1, 0, 0) for i in range(10))) for sid in "ab"]
    watch = Watch(Goodput(100.0, 50.0, 0.9), sessions)
    for turn in range(2):
        watch.turn(record("a", turn, ttft_ms=101.0))
    watch.turn(record("a", 2))
    with pytest.raises(Missed):
        watch.turn(record("b", 0, ttft_ms=101.0))
    failing = Watch(Goodput(100.0, 50.0, 0.9), sessions)
    for turn in range(8):
        failing.turn(record("a", turn))
    failing.turn(record("a", 8, failed=True))
    with pytest.raises(Missed):
        failing.turn(record("b", 0, failed=True))


def test_sessions_under_way() -> None:
    watch = Watch(Goodput(1e9, 1e9, 0.5), [])
    watch._left = {"a": 9, "b": 9}
    for sid in "ab":
        for turn in (2, 7):
            watch.turn(record(sid, turn))
    assert watch.under_way() == pytest.approx(2 * 5.5 / 7.5)


def test_a_mark_changes_what_every_context_starts_with_and_nothing_else() -> None:
    turns = (Turn(0, 9, 2, 2), Turn(11, 5, 2, 2), Turn(0, 7, 2, 2))
    session = Session("d", "s", turns)
    space = TokenSpace(100, frozenset({3}))
    plain, one, two = (TokenSource(space, mark).appended(session) for mark in (None, 3, 4))
    assert [tokens[0] for tokens in one] == [4, plain[1][0], 4]
    assert [tokens[0] for tokens in two] == [5, plain[1][0], 5]
    assert [tokens[1:] for tokens in one] == [tokens[1:] for tokens in plain]
    assert TokenSource(space, 99 + 3).appended(session) == one


class Slower(StubRouter):
    """More than `room` turns at a time take longer than any promise."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    async def turn(self, request: web.Request) -> web.StreamResponse:
        sid = request.match_info["sid"]
        busy = self.running >= self.room
        self.faults = {self.turns_of[sid]: "status"} if busy else {}
        return await super().turn(request)


def run(tmp_path: Path, stub: StubRouter, *more: str) -> int:
    with served(stub.app()) as url:
        return dualpath(
            ["replay", "--url", url, "--out", str(tmp_path), "--vocab-size", "500",
             "--generate", "32k", "--scale", "0.01", "--sessions", "6", "--turns", "4",
             "--min-turns", "4", "--slo", "ttft:60000", "tpot:60000", *more]
        )  # fmt: skip


def searched(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "search.json").read_text()))


def test_a_search_that_ends_with_all_sessions_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = StubRouter()
    assert run(tmp_path, stub, "--search", "--rate", "50") == 0
    result = searched(tmp_path)
    assert result["reason"] == "all_at_once"
    assert result["slo"] == {"ttft_ms": 60000, "tpot_ms": 60000, "required_fraction": 0.9}
    rates = [probe["rate_per_s"] for probe in result["probes"]]
    assert rates == [50.0 * 2**i for i in range(len(rates))]
    assert all(probe["met"] and probe["good_turns"] == 24 for probe in result["probes"])
    report = read_result(tmp_path)
    assert report["driving"]["rate_per_s"] == result["rate_per_s"] == rates[-1]
    assert (report["goodput"]["met"], report["errors"]) == (True, 0)
    assert "give more sessions" in capsys.readouterr().out
    starts = {stub.bodies[24 * i]["token_ids"][0] for i in range(len(rates))}
    assert len(starts) == len(rates)
    assert {turn.append[0] for turn in read_tokens(tmp_path) if not turn.keep} <= starts


def test_a_search_that_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, Slower(0), "--search", "--rate", "200") == 1
    result = searched(tmp_path)
    assert (result["reason"], result["rate_per_s"]) == ("never", None)
    assert all(probe["stopped_early"] for probe in result["probes"])
    assert not (tmp_path / "report.json").exists()
    assert "no rate is low enough" in capsys.readouterr().out


def test_a_promise_without_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, StubRouter(), "--attainment", "1") == 0
    assert read_result(tmp_path)["goodput"]["met"] is True
    assert "met, 100 % are required" in capsys.readouterr().out
    assert run(tmp_path, StubRouter(), "--slo", "ttft:0.001", "tpot:60000") == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--search", "--arrivals", "recorded"], "search goes without"),
        (["--search", "--flush-after-turn", "1"], "search goes without"),
        (["--search", "--rate", "0"], "rate must be above 0"),
        (["--goodput", "ttft:1", "tpot:1"], "only one of --slo and --goodput"),
        (["--attainment", "0"], "attainment must be"),
        (["--slo", "ttft:1", "itl:1"], "slo must be ttft:MS tpot:MS"),
    ],
)
def test_bad_input(
    tmp_path: Path, more: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, StubRouter(), *more) == 2
    assert problem in capsys.readouterr().err


def test_a_search_needs_a_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", "--url", "http://x", "--out", str(tmp_path), "--vocab-size", "9"]
    assert dualpath([*words, "--generate", "32k", "--search"]) == 2
    assert "search needs --slo" in capsys.readouterr().err
