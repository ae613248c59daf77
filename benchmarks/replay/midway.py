"""Points at which every session waits for all the others, and something is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from benchmarks.replay.plan import Midway
from dualpath_sglang.contract.errors import DualPathError


class MidwayFailed(DualPathError):
    """The action at a midway stop failed, so the rest of the replay would mean nothing."""

    kind = "midway_failed"


class Barriers:
    """One barrier per turn count in `turns`, over `sessions` sessions.

    A session that ends early counts as having passed all barriers. The last to arrive runs the
    action; while it runs, and until all have arrived, the others wait. If the action raises,
    the last arriver raises MidwayFailed; the others keep waiting and are to be cancelled.
    """

    def __init__(self, sessions: int, turns: Iterable[int], action: Midway) -> None:
        self._missing = {turn: set(range(sessions)) for turn in sorted(set(turns))}
        self._open = {turn: asyncio.Event() for turn in self._missing}
        self._action = action

    def stops_after(self, turns_done: int) -> bool:
        return turns_done in self._missing

    async def wait(self, session: int, turns_done: int) -> None:
        """After a session's `turns_done`-th turn, where `stops_after` says so."""
        await self._arrive(session, turns_done)
        await self._open[turns_done].wait()

    async def leave(self, session: int) -> None:
        """After a session's end, whatever the reason."""
        for turn in self._missing:
            await self._arrive(session, turn)

    async def _arrive(self, session: int, turn: int) -> None:
        missing = self._missing[turn]
        if session not in missing:
            return
        missing.discard(session)
        if not missing:
            try:
                await self._action(turn)
            except Exception as error:
                raise MidwayFailed(f"midway stop after turn {turn}: {error}") from error
            self._open[turn].set()
