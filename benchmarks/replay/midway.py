"""Points at which every session waits for all the others, and something is done once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

from benchmarks.replay.plan import Midway
from dualpath_sglang.contract.errors import DualPathError


class MidwayFailed(DualPathError):
    """The action at a midway stop failed, so the rest of the replay would mean nothing."""

    kind = "midway_failed"


class Barriers:
    """One barrier per turn count in `turns`, over `sessions` sessions.

    A session that ends early counts as having passed all barriers, and one that waits for another
    session does not hold them up. The last to arrive runs the action; while it runs, and until
    all have arrived, the others wait. If the action raises, the last arriver raises MidwayFailed;
    the others keep waiting and are to be cancelled.
    """

    def __init__(self, sessions: int, turns: Iterable[int], action: Midway) -> None:
        self._missing = {turn: set(range(sessions)) for turn in sorted(set(turns))}
        self._open = {turn: asyncio.Event() for turn in self._missing}
        self._waiting: dict[int, Callable[[], bool]] = {}
        self._started: set[int] = set()
        self._action = action

    def stops_after(self, turns_done: int) -> bool:
        return turns_done in self._missing

    async def wait(self, session: int, turns_done: int) -> None:
        """After a session's `turns_done`-th turn, where `stops_after` says so."""
        self._missing[turns_done].discard(session)
        await self._act(turns_done)
        await self._open[turns_done].wait()

    async def leave(self, session: int) -> None:
        """After a session's end, whatever the reason."""
        for turn in self._missing:
            self._missing[turn].discard(session)
            await self._act(turn)

    @contextlib.asynccontextmanager
    async def excused(self, session: int, waits: Callable[[], bool]) -> AsyncIterator[None]:
        """While `waits()`: the session waits for another, which may be waiting at a barrier."""
        self._waiting[session] = waits
        try:
            for turn in self._missing:
                await self._act(turn)
            yield
        finally:
            del self._waiting[session]

    async def _act(self, turn: int) -> None:
        """Runs the action, once, if nobody is missing who could come."""
        excused = {session for session, waits in self._waiting.items() if waits()}
        if turn in self._started or not self._missing[turn] <= excused:
            return
        self._started.add(turn)
        try:
            await self._action(turn)
        except Exception as error:
            raise MidwayFailed(f"midway stop after turn {turn}: {error}") from error
        self._open[turn].set()
