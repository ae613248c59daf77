"""Percentiles, arrivals, gaps, goodput limits, event parsing, barriers, progress."""

from __future__ import annotations

import asyncio
import io
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.midway import Barriers
from benchmarks.replay.plan import (
    DriverOptions,
    Gaps,
    parse_goodput,
    parse_times,
    poisson_arrivals,
)
from benchmarks.replay.progress import Progress
from benchmarks.replay.stats import percentile, summary
from dualpath_sglang.contract.errors import ConfigError


def test_percentiles_interpolate_between_ranks() -> None:
    assert percentile([10.0], 99) == 10.0
    assert percentile([0.0, 10.0], 50) == 5.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 90) == pytest.approx(3.7)
    made = summary([None, 3.0, 1.0, 2.0])
    assert (made["count"], made["mean"], made["p50"], made["max"]) == (3, 2.0, 2.0, 3.0)
    assert summary([None])["p50"] is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 100))
def test_percentiles_lie_within_and_rise(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    value = percentile(ordered, percent)
    assert ordered[0] <= value <= ordered[-1]
    assert value <= percentile(ordered, min(100.0, percent + 5)) + 1e-6


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = poisson_arrivals(4000, 2.0, seed=1)
    assert times == poisson_arrivals(4000, 2.0, seed=1)
    assert times[:100] == poisson_arrivals(100, 2.0, seed=1)
    assert times != poisson_arrivals(4000, 2.0, seed=2)
    assert times == sorted(times)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert mean(gaps) == pytest.approx(0.5, rel=0.05)
    assert mean(gap > 0.5 for gap in gaps) == pytest.approx(0.368, abs=0.03)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        poisson_arrivals(1, rate, 0)


def test_times_and_pauses() -> None:
    assert [parse_times(text, "gaps") for text in ("zero", "recorded", "0.5")] == [0, 1, 0.5]
    for bad in ("sometimes", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="gaps must be"):
            parse_times(bad, "gaps")
    assert Gaps(0.5).scaled(9.0) == 4.5
    assert Gaps(1.0).scaled(None) == 0.0
    assert Gaps(1.0, most_s=2.0).scaled(9.0) == 2.0
    for worst in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="max-gap"):
            Gaps(1.0, worst)


def test_goodput_limits() -> None:
    limits = parse_goodput(["tpot:50", "ttft:4000"])
    assert (limits.ttft_ms, limits.tpot_ms) == (4000, 50)
    for bad in (["ttft:1"], ["ttft:1", "itl:2"], ["ttft:0", "tpot:1"], ["ttft:x", "tpot:1"]):
        with pytest.raises(ConfigError, match="goodput"):
            parse_goodput(bad)


def test_driver_options_refuse_nonsense() -> None:
    for bad in ({"url": "localhost:1"}, {"concurrency": 0}, {"midway_turns": (0,)}):
        with pytest.raises(ConfigError):
            DriverOptions(**{"url": "http://x", **bad})  # type: ignore[arg-type]
    assert DriverOptions("http://x").gaps == Gaps(0.0)


async def test_barrier_runs_once_after_all_and_before_any_goes_on() -> None:
    log: list[str] = []

    async def action(turn: int) -> None:
        log.append(f"action {turn}")
        await asyncio.sleep(0)

    barriers = Barriers(3, (2,), action)

    async def session(index: int) -> None:
        log.append("arrives")
        await barriers.wait(index, 2)
        log.append("goes on")
        await barriers.leave(index)

    assert barriers.stops_after(2)
    assert not barriers.stops_after(1)
    await asyncio.gather(session(0), session(1), barriers.leave(2))
    assert log == ["arrives", "arrives", "action 2", "goes on", "goes on"]


async def test_a_barrier_does_not_wait_for_who_waits_for_another() -> None:
    """And it stops nobody who comes later."""
    log: list[str] = []

    async def action(turn: int) -> None:
        log.append("action")

    barriers = Barriers(2, (2,), action)
    over = asyncio.Event()

    async def first() -> None:
        await barriers.wait(0, 2)
        over.set()
        await barriers.leave(0)

    async def second() -> None:
        async with barriers.excused(1, lambda: not over.is_set()):
            await over.wait()
        await barriers.wait(1, 2)
        log.append("goes on")

    await asyncio.wait_for(asyncio.gather(first(), second()), 5)
    assert log == ["action", "goes on"]


async def test_a_barrier_waits_for_who_waits_no_longer() -> None:
    """Its turn has come, although it has not noticed so far."""
    acted = []

    async def action(turn: int) -> None:
        acted.append(turn)

    barriers = Barriers(2, (1,), action)
    async with barriers.excused(1, lambda: False):
        await barriers.leave(0)
        assert acted == []
    await barriers.leave(1)
    assert acted == [1]


def test_progress_off_a_terminal_is_plain_lines() -> None:
    stream = io.StringIO()
    with Progress("replay", 3, stream) as progress:
        progress.turn_ended(10.0)
        progress.turn_ended(None)
        progress.session_ended(1)
    assert stream.getvalue() == "replay: 3/3 turns, 0 s, 1 failed, 1 not sent, mean TTFT 10 ms\n"


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("replay", 2, stream) as progress:
        progress.turn_ended(10.0)
        progress.turn_ended(20.0)
    assert "replay: 100%" in stream.getvalue()
