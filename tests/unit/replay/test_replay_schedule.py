"""The recorded order among the sessions of one user, and when users arrive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay import traj1
from benchmarks.replay.plan import rate_arrivals, recorded_arrivals
from benchmarks.replay.schedule import Moment, Schedule, Start, plan
from benchmarks.replay.trace import Session, Turn
from dualpath_sglang.contract.errors import ConfigError


def session(
    sid: str,
    start_s: float | None,
    *spans: tuple[float, float],
    parent: str | None = "u",
) -> Session:
    """Turns from so many seconds to so many, both since the session's start."""
    turns = tuple(Turn(0, 1, 1, 1, None, t_s=begin, llm_s=end - begin) for begin, end in spans)
    return Session("d", sid, turns, parent=parent, start_s=start_s)


def test_a_sub_agent_runs_beside_its_session_and_ends_before_the_turn_that_waited_for_it() -> None:
    main = session("main", 0, (0, 2), (5, 7), (30, 32))
    agent = session("agent", 8, (0, 4), (6, 12))
    assert plan([main, agent]).starts == (
        (
            Start(),
            Start(pause_s=3.0),
            Start((Moment(1, 1, end=True),), pause_s=10.0),
        ),
        (Start((Moment(0, 1, end=True),), pause_s=1.0), Start(pause_s=2.0)),
    )


def test_a_sub_agent_started_while_a_turn_was_running_waits_for_its_start_only() -> None:
    main = session("main", 0, (0, 20), (25, 26))
    agent = session("agent", 4, (0, 3))
    main_starts, agent_starts = plan([main, agent]).starts
    assert agent_starts[0] == Start((Moment(0, 0, end=False),), pause_s=4.0)
    assert main_starts[1] == Start((Moment(1, 0, end=True),), pause_s=5.0)


def test_sub_agents_side_by_side_wait_for_their_session_not_for_each_other() -> None:
    main = session("main", 0, (0, 2), (50, 51))
    agents = [session(f"agent{i}", 3 + i, (0, 10), (12, 20)) for i in range(3)]
    main_starts, *others = plan([main, *agents]).starts
    assert {starts[0].after for starts in others} == {(Moment(0, 0, end=True),)}
    assert main_starts[1].after == tuple(Moment(i, 1, end=True) for i in (1, 2, 3))
    assert main_starts[1].pause_s == 25.0


def test_sessions_of_a_user_follow_each_other() -> None:
    one, two = session("one", 0, (0, 2), (5, 7)), session("two", 60, (0, 1))
    assert plan([one, two]).starts[1] == (Start((Moment(0, 1, end=True),), pause_s=53.0),)
    assert plan([two, one]).starts[0] == (Start((Moment(1, 1, end=True),), pause_s=53.0),)


def test_a_sub_agent_that_never_came_back_is_not_waited_for() -> None:
    main = session("main", 0, (0, 2), (5, 7))
    agent = session("agent", 3, (0, 90))
    main_starts, agent_starts = plan([main, agent]).starts
    assert main_starts[1] == Start(pause_s=3.0)
    assert agent_starts[0].after == (Moment(0, 0, end=True),)


def test_times_rounded_to_seconds_keep_the_order() -> None:
    """The agent ended 0.7 s after the turn that had its answer."""
    main = session("main", 0, (0, 2), (9, 11))
    agent = session("agent", 3, (0, 6.7))
    assert plan([main, agent]).starts[0][1].after == (Moment(1, 0, end=True),)
    short = session("agent", 9.2, (0, 0.1))
    assert plan([main, short]).starts[0][1].after == ()


def test_who_waits_for_nobody() -> None:
    alone = session("alone", 5, (0, 1), parent=None)
    other = session("other", 5, (0, 1), parent="v")
    unknown = session("unknown", None, (0, 1))
    first, last = session("first", 0, (0, 1)), session("last", 9, (0, 1))
    made = plan([alone, other, unknown, first, last])
    assert made.roots == [0, 1, 2, 3]


def test_a_parent_may_be_one_of_the_sessions() -> None:
    main = session("u", 700, (0, 2), (9, 11), parent=None)
    agent = session("agent", 3, (0, 5))
    main_starts, agent_starts = plan([main, agent]).starts
    assert agent_starts[0] == Start((Moment(0, 0, end=True),), pause_s=1.0)
    assert main_starts[1].after == (Moment(1, 0, end=True),)


def test_pauses_that_are_recorded_or_follow_from_times() -> None:
    turns = (
        Turn(0, 1, 1, 1, t_s=0.0, llm_s=2.0),
        Turn(0, 1, 1, 1, t_s=5.0),
        Turn(0, 1, 1, 1, t_s=9.0),
        Turn(0, 1, 1, 1, 2.5, t_s=20.0),
        Turn(0, 1, 1, 1),
    )
    starts = plan([Session("d", "s", turns)]).starts[0]
    assert starts == (
        Start(), Start(pause_s=3.0), Start(since_s=9.0), Start(pause_s=2.5), Start(),
    )  # fmt: skip


def test_recorded_arrivals_count_from_the_first_of_their_own() -> None:
    sessions = [
        session("u-late", 50, (0, 1)),
        session("u-agent", 20, (0, 60)),
        session("v", 7, (0, 1), parent="v"),
        session("a", 1000, (0, 1), parent=None),
        session("b", 1004, (0, 1), parent=None),
    ]
    assert recorded_arrivals(sessions, plan(sessions), 0.5) == [None, 0.0, 0.0, 0.0, 2.0]
    unknown = [session("c", None, (0, 1), parent=None)]
    with pytest.raises(ConfigError, match="c: start_s is not recorded"):
        recorded_arrivals(unknown, plan(unknown), 1.0)


@st.composite
def families(draw: st.DrawFn) -> list[Session]:
    second = st.integers(0, 40).map(lambda half: half / 2)
    made = []
    for index in range(draw(st.integers(1, 7))):
        spans, at = [], 0.0
        for _ in range(draw(st.integers(1, 4))):
            end = at + draw(second)
            spans.append((at, end))
            at = end + draw(second)
        parent = draw(st.sampled_from(["u", "v", None]))
        made.append(session(f"s{index}", draw(second), *spans, parent=parent))
    return made


def run(schedule: Schedule) -> list[tuple[Moment, Moment]]:
    """Sends every turn as soon as it may be sent, one at a time; the moments in their order."""
    done: dict[Moment, int] = {}
    left = dict.fromkeys(range(len(schedule.starts)), 0)
    while left:
        ready = [
            (i, turn)
            for i, turn in left.items()
            if all(moment in done for moment in schedule.starts[i][turn].after)
        ]
        assert ready, f"nothing can go on: {left}"
        for i, turn in ready:
            done.setdefault(Moment(i, turn, end=False), len(done))
        i, turn = ready[-1]
        done[Moment(i, turn, end=True)] = len(done)
        left[i] += 1
        if left[i] == len(schedule.starts[i]):
            del left[i]
    return list(pairwise(sorted(done, key=lambda moment: done[moment])))


@given(families())
def test_nothing_waits_in_a_circle(sessions: list[Session]) -> None:
    schedule = plan(sessions)
    turns = sum(len(each.turns) for each in sessions)
    assert len(run(schedule)) == 2 * turns - 1


@given(families())
def test_what_a_session_waits_for_happened_before_it(sessions: list[Session]) -> None:
    """By recorded times, up to their rounding; and all pauses are real ones."""
    for each, starts in zip(sessions, plan(sessions).starts, strict=True):
        for turn, start in zip(each.turns, starts, strict=True):
            begin = (each.start_s or 0.0) + (turn.t_s or 0.0)
            assert start.pause_s is None or start.pause_s >= 0
            for moment in start.after:
                other = sessions[moment.session]
                assert other.parent == each.parent is not None
                assert time_of(other, moment) <= begin + 1.0


def time_of(other: Session, moment: Moment) -> float:
    turn = other.turns[moment.turn]
    began = (other.start_s or 0.0) + (turn.t_s or 0.0)
    return began + (turn.llm_s or 0.0) if moment.end else began


@given(families(), st.floats(0.1, 10), st.integers(0, 99))
def test_arrivals_are_a_total_order(sessions: list[Session], rate: float, seed: int) -> None:
    """By the recorded start, then by the place in the file; a rate keeps the file's order."""
    schedule = plan(sessions)
    drawn = rate_arrivals(schedule, rate, seed)
    recorded = recorded_arrivals(sessions, schedule, 1.0)
    for times in (drawn, recorded):
        assert [time is None for time in times] == waiting(schedule)
    roots = [time for time in drawn if time is not None]
    assert roots == sorted(roots)
    for parent in {each.parent for each in sessions}:
        of_parent = [i for i in schedule.roots if sessions[i].parent == parent]
        by_start = sorted(of_parent, key=lambda i: (sessions[i].start_s, i))
        assert by_start == sorted(of_parent, key=lambda i: (recorded[i], i))


def waiting(schedule: Schedule) -> list[bool]:
    return [i not in schedule.roots for i in range(len(schedule.starts))]


def weka() -> Path:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "traces"
    return Path(os.environ.get("DUALPATH_TEST_TRACES", beside)) / "weka.dev.jsonl.gz"


@pytest.mark.skipif(not weka().exists(), reason="no real traces here (DUALPATH_TEST_TRACES)")
def test_real_users_have_one_session_that_waits_for_nobody() -> None:
    sessions = list(traj1.read(weka()))
    schedule = plan(sessions)
    assert len(run(schedule)) > 2 * 9000
    parents = [sessions[index].parent for index in schedule.roots]
    assert len(parents) == len(set(parents)) == len({each.parent for each in sessions})
    assert joined(sessions, schedule) > 20


def joined(sessions: Sequence[Session], schedule: Schedule) -> int:
    """Sub-agents whose end a turn of another session waits for."""
    return sum(
        "/agent" in sessions[moment.session].sid
        for starts in schedule.starts
        for start in starts[1:]
        for moment in start.after
    )
