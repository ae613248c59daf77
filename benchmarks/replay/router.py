"""The router's session API as the replay uses it; only flushing is retried."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from agent_runtime.client import AsyncDualPathClient, NewTokens, TurnDone, TurnOptions
from benchmarks.replay.records import Failure
from dualpath_sglang.contract.errors import DualPathError, RouterFailure

FLUSH_TRIES, FLUSH_PAUSE_S = 40, 0.5


class CallFailed(Exception):
    """A call to a server did not give what it should; `failure` goes into the records."""

    def __init__(self, kind: str, message: str, status: int | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.failure = Failure(kind, message, status)


@dataclass
class Streamed:
    """One turn as it arrived. Times are `perf_counter` seconds, one per token."""

    sent: float
    done: TurnDone
    ended: float
    times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


class Router:
    """Raises CallFailed for everything that goes wrong on the way, and after `timeout_s`."""

    def __init__(self, client: AsyncDualPathClient, timeout_s: float = 600.0) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def create(self, metadata: dict[str, Any]) -> str:
        async with self._failures():
            return (await self._client.create(metadata=metadata)).session_id

    async def history(self, session_id: str) -> list[int]:
        async with self._failures():
            return await self._client.history(session_id)

    async def delete(self, session_id: str) -> None:
        async with self._failures():
            await self._client.delete(session_id)

    async def flush(self) -> None:
        """An engine refuses while it still writes KV of finished turns to the store: ask again."""
        for attempt in range(FLUSH_TRIES):
            try:
                async with self._failures():
                    await self._client.flush()
                return
            except CallFailed:
                if attempt == FLUSH_TRIES - 1:
                    raise
            await asyncio.sleep(FLUSH_PAUSE_S)

    async def turn(self, session_id: str, options: TurnOptions) -> Streamed:
        """Sends one turn and reads its stream to the end."""
        sent = time.perf_counter()
        times: list[float] = []
        token_ids: list[int] = []
        async with self._failures(), aclosing(self._client.stream(session_id, **options)) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    token_ids += event.token_ids
                    times += [time.perf_counter()] * len(event.token_ids)
                elif isinstance(event, TurnDone):
                    return Streamed(sent, event, time.perf_counter(), times, token_ids)
        raise CallFailed(RouterFailure.kind, "the stream ended before the turn was done")

    @contextlib.asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            message = f"no answer within {self._timeout_s:g} s"
            raise CallFailed("timeout", message) from error
        except RouterFailure as error:
            raise CallFailed(error.kind, error.message) from error
        except DualPathError as error:
            raise CallFailed(error.kind, error.message, error.http_status) from error
