"""The order of events: (time, phase, sequence), whatever order they were asked for in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sim.loop import Loop, Phase

asked = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 1.5, 2.0]), st.sampled_from(list(Phase))))


@given(asked)
def test_events_run_by_time_then_phase_then_sequence(events: list[tuple[float, Phase]]) -> None:
    loop = Loop()
    ran: list[tuple[float, Phase, int]] = []
    for number, (time, phase) in enumerate(events):
        loop.at(time, phase, lambda now, what: ran.append((now, *what)), (phase, number))
    loop.run()
    assert ran == sorted((time, phase, number) for number, (time, phase) in enumerate(events))
    assert loop.events == len(events)


def test_an_arrival_at_the_end_of_a_forward_comes_after_it_and_before_the_next_batch() -> None:
    loop, ran = Loop(), []
    for name, phase in (("batch", Phase.START), ("arrival", Phase.ARRIVAL), ("end", Phase.FORWARD)):
        loop.at(1.0, phase, lambda now, what: ran.append(what), name)
    loop.run()
    assert ran == ["end", "arrival", "batch"]


def test_what_an_event_asks_for_now_runs_now_and_after_everything_of_its_phase() -> None:
    loop, ran = Loop(), []

    def first(now: float, _: object) -> None:
        loop.at(now, Phase.LINK, lambda now, what: ran.append(what), "asked within")

    loop.at(1.0, Phase.LINK, first)
    loop.at(1.0, Phase.LINK, lambda now, what: ran.append(what), "asked before")
    loop.run()
    assert ran == ["asked before", "asked within"]


def test_a_run_ends_with_the_events_of_its_last_moment() -> None:
    loop, ran = Loop(), []
    for time in (1.0, 2.0, 2.5):
        loop.at(time, Phase.LINK, lambda now, what: ran.append(now))
    loop.run(until=2.0)
    assert ran == [1.0, 2.0]
    loop.run()
    assert ran == [1.0, 2.0, 2.5]


@pytest.mark.parametrize("time", [0.5, float("nan")])
def test_nothing_happens_in_the_past(time: float) -> None:
    loop = Loop()
    loop.at(1.0, Phase.LINK, lambda now, what: None)
    loop.run()
    with pytest.raises(ValueError, match=r"was asked for at 1\.0 s"):
        loop.at(time, Phase.LINK, lambda now, what: None)
