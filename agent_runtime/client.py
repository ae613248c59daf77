"""Python client of the router's session API: `DualPathClient`, and the same for asyncio.

    with DualPathClient("http://127.0.0.1:8000") as client:
        session = client.create()
        for event in client.stream(session.session_id, text="hello", max_new_tokens=64):
            ...

What the router refuses is raised as the leaf of `contract.errors` that the router itself raised,
with its `http_status`, `field` and, as a note, the request id of the router's log. Whatever goes
wrong on the way is a `RouterFailure`. Nothing is tried again: give a turn an `idempotency_key` and
send it once more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, Self, TypeVar, Unpack

import httpx

from agent_runtime import client_wire as wire
from agent_runtime.client_wire import (
    TIMEOUT_S,
    Call,
    NewTokens,
    SessionInfo,
    TurnDone,
    TurnEvent,
    TurnOptions,
    TurnStarted,
)

__all__ = [
    "AsyncDualPathClient",
    "DualPathClient",
    "NewTokens",
    "SessionInfo",
    "TurnDone",
    "TurnEvent",
    "TurnOptions",
    "TurnStarted",
]
T = TypeVar("T")


class DualPathClient:
    """Every method raises DualPathError. `timeout`: seconds without a byte of the answer."""

    def __init__(self, base_url: str, *, timeout: float = TIMEOUT_S) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=wire.timeouts(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create(
        self, session_id: str | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> SessionInfo:
        return self._ask(wire.create(session_id, metadata))

    def session(self, session_id: str) -> SessionInfo:
        return self._ask(wire.show(session_id))

    def history(self, session_id: str) -> list[int]:
        """The exact tokens of the session."""
        return self._ask(wire.history(session_id))

    def turn(
        self, session_id: str, *, idempotency_key: str | None = None, **options: Unpack[TurnOptions]
    ) -> TurnDone:
        return self._ask(wire.turn(session_id, idempotency_key, options))

    def stream(
        self, session_id: str, *, idempotency_key: str | None = None, **options: Unpack[TurnOptions]
    ) -> Generator[TurnEvent, None, None]:
        """Ends with a TurnDone. Closing the generator before that cancels the turn."""
        call = wire.turn(session_id, idempotency_key, options, stream=True)
        events = wire.Events()
        with wire.mapped(), self._http.stream(**call.request()) as reply:
            if reply.status_code != 200:
                reply.read()
                call.read(reply)
            for data in reply.iter_bytes():
                yield from events.feed(data)
        events.end()

    def delete(self, session_id: str) -> None:
        """A turn under way is cancelled."""
        self._ask(wire.delete(session_id))

    def flush(self) -> list[str]:
        """Empties the engines' own caches, not the store; returns the engines' names."""
        return self._ask(wire.flush())

    def ready(self) -> bool:
        """Whether turns can be served now."""
        return self._ask(wire.ready())

    def _ask(self, call: Call[T]) -> T:
        with wire.mapped():
            return call.read(self._http.request(**call.request()))


class AsyncDualPathClient:
    """As `DualPathClient`, for asyncio."""

    def __init__(self, base_url: str, *, timeout: float = TIMEOUT_S) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, timeout=wire.timeouts(timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def create(
        self, session_id: str | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> SessionInfo:
        return await self._ask(wire.create(session_id, metadata))

    async def session(self, session_id: str) -> SessionInfo:
        return await self._ask(wire.show(session_id))

    async def history(self, session_id: str) -> list[int]:
        return await self._ask(wire.history(session_id))

    async def turn(
        self, session_id: str, *, idempotency_key: str | None = None, **options: Unpack[TurnOptions]
    ) -> TurnDone:
        return await self._ask(wire.turn(session_id, idempotency_key, options))

    async def stream(
        self, session_id: str, *, idempotency_key: str | None = None, **options: Unpack[TurnOptions]
    ) -> AsyncGenerator[TurnEvent, None]:
        """Ends with a TurnDone. With `contextlib.aclosing` around it, leaving early cancels."""
        call = wire.turn(session_id, idempotency_key, options, stream=True)
        events = wire.Events()
        with wire.mapped():
            async with self._http.stream(**call.request()) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    call.read(reply)
                async for data in reply.aiter_bytes():
                    for event in events.feed(data):
                        yield event
        events.end()

    async def delete(self, session_id: str) -> None:
        await self._ask(wire.delete(session_id))

    async def flush(self) -> list[str]:
        return await self._ask(wire.flush())

    async def ready(self) -> bool:
        return await self._ask(wire.ready())

    async def _ask(self, call: Call[T]) -> T:
        with wire.mapped():
            return call.read(await self._http.request(**call.request()))
