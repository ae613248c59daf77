"""What a turn tells on its way, and the channel on which it tells it.

    Started ─▶ Tokens ... ─▶ Done        Failed takes the place of the rest, also of the first

The turn runs in a task of its own and knows nothing of who reads; every API encodes these values.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from agent_runtime.trajectory.model import PlacementRecord, TurnRecord

QUEUED_EVENTS = 64
"""A reader that is so many events behind slows its engine's stream down."""


@dataclass(frozen=True)
class Started:
    """The turn has its engines (null: an earlier turn is told again)."""

    turn: int
    prompt_tokens: int
    placement: PlacementRecord | None


@dataclass(frozen=True)
class Tokens:
    """New tokens and new text, each maybe empty: text comes in whole characters and may wait for
    what could become a stop string. `meta`: the engine's `meta_info`, as it is."""

    token_ids: list[int]
    text: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """`replayed`: an earlier turn with the same idempotency key; nothing was generated now.
    `meta`: the decode engine's last `meta_info`."""

    record: TurnRecord
    replayed: bool
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A DualPathError, or a defect of ours."""

    error: Exception


TurnEvent = Started | Tokens | Done | Failed


class TurnEvents:
    """The events of one turn, for one reader: iterate, the last is Done or Failed.

    `close` cancels the turn, `leave` lets it go on unheard. A turn that was cancelled from within
    the router without a reason ends the iteration without either.
    """

    def __init__(self) -> None:
        self._events: deque[TurnEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._left = False
        self._task: asyncio.Task[None] | None = None

    def run(self, turn: Awaitable[Done]) -> None:
        """Starts the turn. It tells its events by `put` and returns the last one."""
        self._task = asyncio.create_task(self._to_its_end(turn))
        self._task.add_done_callback(lambda _: _wake(self._reader))

    async def put(self, event: TurnEvent) -> None:
        """Waits for a reader that is behind."""
        while len(self._events) >= QUEUED_EVENTS and not self._left:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if not self._left:
            self._events.append(event)
            _wake(self._reader)

    def __aiter__(self) -> TurnEvents:
        return self

    async def __anext__(self) -> TurnEvent:
        while not self._events:
            if self._task is None or self._task.done():
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        event = self._events.popleft()
        _wake(self._writer)
        return event

    async def last(self) -> Done | Failed:
        """Reads all events. Raises CancelledError where there is no last one."""
        async for event in self:
            if isinstance(event, Done | Failed):
                return event
        raise asyncio.CancelledError

    def leave(self) -> None:
        self._left = True
        self._events.clear()
        _wake(self._writer)

    async def close(self) -> None:
        """Afterwards the engines have been told, or are being told."""
        self.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _to_its_end(self, turn: Awaitable[Done]) -> None:
        last: Done | Failed
        try:
            last = await turn
        except Exception as error:
            last = Failed(error)
        await self.put(last)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
