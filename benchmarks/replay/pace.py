"""Makes sessions and their turns wait as the schedule says: for moments in other sessions, and
for recorded times times a factor."""

from __future__ import annotations

import asyncio

from benchmarks.replay.plan import Gaps
from benchmarks.replay.schedule import Moment, Schedule, Start


class Pace:
    """One event for each moment that something waits for; told by the driver what happened."""

    def __init__(self, schedule: Schedule, gaps: Gaps) -> None:
        self._starts = schedule.starts
        self._gaps = gaps
        awaited = {moment for starts in self._starts for each in starts for moment in each.after}
        self._events = {moment: asyncio.Event() for moment in awaited}

    def waits(self, session: int, turn: int) -> bool:
        """Whether the turn has to wait for another session that has not come so far."""
        return any(not self._events[moment].is_set() for moment in self._start(session, turn).after)

    async def others(self, session: int, turn: int) -> None:
        """Returns when what the turn waits for in other sessions has happened."""
        for moment in self._start(session, turn).after:
            await self._events[moment].wait()

    def pause_s(self, session: int, turn: int, since_start_s: float) -> float:
        """Seconds to wait now; the session started `since_start_s` ago."""
        start = self._start(session, turn)
        if start.since_s is not None:
            return max(0.0, self._gaps.scaled(start.since_s) - since_start_s)
        return self._gaps.scaled(start.pause_s)

    def sent(self, session: int, turn: int) -> None:
        self._happened(Moment(session, turn, end=False))

    def ended(self, session: int, turn: int) -> None:
        self._happened(Moment(session, turn, end=True))

    def left(self, session: int) -> None:
        """A session is over, whether or not it did all its turns: nobody waits for it any more."""
        for turn in range(len(self._starts[session])):
            self.sent(session, turn)
            self.ended(session, turn)

    def _start(self, session: int, turn: int) -> Start:
        return self._starts[session][turn]

    def _happened(self, moment: Moment) -> None:
        if moment in self._events:
            self._events[moment].set()
