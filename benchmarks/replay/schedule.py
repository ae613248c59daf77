"""What waits for what: the order that a trace recorded among the sessions of one user.

A user's sessions follow each other, and sub-agents run beside the session that started them. From
the recorded times each session gets one thing that it starts after: the last that happened before
in the user's session under way (a turn was sent, or it ended), or else the end of the user's last
session. And a turn that was sent after a sub-agent's end waits for that end. So every session has
at most one it depends on, which waits only at later turns: nothing can wait in a circle.

Pure: recorded seconds in, no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.replay.trace import Session

ROUNDED_S = 1.0
"""Recorded times may be rounded to seconds: what ended so little after a turn ended before it."""


@dataclass(frozen=True)
class Moment:
    """A turn of a session (by its index) was sent, or (`end`) has ended."""

    session: int
    turn: int
    end: bool


@dataclass(frozen=True)
class Start:
    """When a turn may be sent, besides the end of the turn before it.

    after: moments in other sessions. pause_s: recorded seconds from the last thing it waits for.
    since_s: instead, recorded seconds from the start of its session, where the end of the turn
    before is not recorded. None: not recorded.
    """

    after: tuple[Moment, ...] = ()
    pause_s: float | None = None
    since_s: float | None = None


@dataclass(frozen=True)
class Schedule:
    """One `Start` for each turn of each session, in the order of the sessions."""

    starts: tuple[tuple[Start, ...], ...]

    @property
    def roots(self) -> list[int]:
        """The sessions that wait for no other: those that arrive from outside."""
        return [index for index, starts in enumerate(self.starts) if not starts[0].after]


@dataclass(frozen=True)
class _Times:
    """Of one session: when each turn was sent and when it ended, seconds since its user's start."""

    index: int
    begins: list[float]
    ends: list[float]

    @property
    def order(self) -> tuple[float, int]:
        return self.begins[0], self.index


def plan(sessions: Sequence[Session]) -> Schedule:
    """The recorded order; sessions without a parent or without times wait for nobody."""
    starts = [
        [_pause(session, number) for number in range(len(session.turns))] for session in sessions
    ]
    for family in _families(sessions):
        times = [_times(index, sessions[index]) for index in family]
        known = sorted((each for each in times if each is not None), key=lambda each: each.order)
        for place, child in enumerate(known[1:], start=1):
            _order(child, known[:place], starts)
    return Schedule(tuple(map(tuple, starts)))


def _pause(session: Session, number: int) -> Start:
    """Of a turn that waits for the turn before it only."""
    turn = session.turns[number]
    if number == 0:
        return Start()
    before = session.turns[number - 1]
    if turn.gap_s is not None or turn.t_s is None:
        return Start(pause_s=turn.gap_s)
    if before.t_s is not None and before.llm_s is not None:
        return Start(pause_s=max(0.0, turn.t_s - before.t_s - before.llm_s))
    return Start(since_s=turn.t_s)


def _families(sessions: Sequence[Session]) -> Iterator[list[int]]:
    """Indices of the sessions of one parent, which may be the name of one of them."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    parents = {(session.dataset, session.parent) for session in sessions}
    for index, session in enumerate(sessions):
        key = (session.dataset, session.parent or session.sid)
        if session.parent is not None or key in parents:
            found[key].append(index)
    return (family for family in found.values() if len(family) > 1)


def _times(index: int, session: Session) -> _Times | None:
    start = session.start_s if session.parent is not None else 0.0
    offsets = [0.0, *(turn.t_s for turn in session.turns[1:])]
    if start is None:
        return None
    begins: list[float] = []
    for offset in offsets:
        if offset is None:
            return None
        begins.append(start + offset)
    ends = []
    for number, (turn, begin) in enumerate(zip(session.turns, begins, strict=True)):
        if turn.llm_s is not None:
            end = begin + turn.llm_s
        elif number + 1 < len(begins):
            end = begins[number + 1] - (session.turns[number + 1].gap_s or 0.0)
        else:
            end = begin
        ends.append(max(begin, end))
    return _Times(index, begins, ends)


def _order(child: _Times, earlier: Sequence[_Times], starts: list[list[Start]]) -> None:
    """Notes what the child starts after, and which turn waits for its end."""
    begin, end = child.begins[0], child.ends[-1]
    running = next((each for each in earlier if each.ends[-1] > begin), None)
    parent = running or max(earlier, key=lambda each: (each.ends[-1], each.index))
    moments = [(at, Moment(parent.index, turn, True)) for turn, at in enumerate(parent.ends)]
    moments += [(at, Moment(parent.index, turn, False)) for turn, at in enumerate(parent.begins)]
    at, moment = max(
        ((at, moment) for at, moment in moments if at <= begin),
        key=lambda each: (each[0], each[1].turn, each[1].end),
    )
    starts[child.index][0] = Start((moment,), begin - at)
    for turn in range(moment.turn + 1, len(parent.begins)):
        if end <= parent.begins[turn] + ROUNDED_S:
            waiting = starts[parent.index][turn]
            last = Moment(child.index, len(child.ends) - 1, True)
            pause = max(0.0, parent.begins[turn] - max(end, parent.ends[turn - 1]))
            if waiting.after and waiting.pause_s is not None:
                pause = min(pause, waiting.pause_s)
            starts[parent.index][turn] = replace(
                waiting, after=(*waiting.after, last), pause_s=pause, since_s=None
            )
            return
