"""Answers that take a while: whoever wants one may go away, or read slowly, or wait long.

SGLang's and Starlette's own checks only notice a client that left when they send, so the
connection is watched here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from agent_runtime.http import sse

CLIENT_LEFT = 499
"""Nobody is there to read it; what other servers write into their logs then."""
SILENCE_S = 15.0
"""Proxies close streams on which nothing comes: after so long a heartbeat is sent."""

Close = Callable[[], Coroutine[Any, Any, None]]
FailedPiece = Callable[[Exception], bytes]
T = TypeVar("T")


async def unless_gone(work: Awaitable[T], receive: Receive) -> T | None:
    """The result of `work`; null, and `work` is cancelled, when the client leaves first."""
    task, gone = asyncio.ensure_future(work), asyncio.create_task(client_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await stop(task, gone)


async def stream(
    pieces: AsyncGenerator[bytes, None], close: Close, failed: FailedPiece, receive: Receive
) -> Response:
    """`pieces` as a stream of events. `close` ends what makes them.

    What goes wrong before the first piece is raised here; later, or when it took so long that the
    headers had to be sent, it is the stream's last piece, as `failed` encodes it.
    """
    first = asyncio.ensure_future(anext(pieces, b""))
    gone = asyncio.create_task(client_gone(receive))
    try:
        await asyncio.wait((first, gone), timeout=SILENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            first.result()  # raises what went wrong
        elif gone.done():
            await _end(first, gone, pieces, close)
            return Response(status_code=CLIENT_LEFT)
    except BaseException:
        await _end(first, gone, pieces, close)
        raise
    return EventStream(first, pieces, close, failed, gone)


class EventStream(Response):
    """Sends the pieces as they come, and heartbeats; ends their maker when the client is gone."""

    media_type = sse.MEDIA_TYPE

    def __init__(
        self,
        first: asyncio.Future[bytes],
        pieces: AsyncGenerator[bytes, None],
        close: Close,
        failed: FailedPiece,
        gone: asyncio.Task[None],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._pieces, self._close, self._gone = first, pieces, close, gone
        self._failed = failed
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(send))
        heart = asyncio.create_task(self._beat(send))
        try:
            await asyncio.wait((pump, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                with contextlib.suppress(OSError):  # the client went while we wrote
                    pump.result()
        finally:
            await stop(pump, heart)
            await _end(self._first, self._gone, self._pieces, self._close)

    async def _pump(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        async for piece in self._all():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._sent_at = loop.time()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _all(self) -> AsyncIterator[bytes]:
        try:
            if piece := await self._first:
                yield piece
                async for piece in self._pieces:
                    yield piece
        except Exception as error:
            yield self._failed(error)

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._sent_at
            if quiet < SILENCE_S:
                await asyncio.sleep(SILENCE_S - quiet)
                continue
            self._sent_at = loop.time()
            await send({"type": "http.response.body", "body": sse.HEARTBEAT, "more_body": True})


async def client_gone(receive: Receive) -> None:
    """Returns when the client has disconnected; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancels and waits."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _end(
    first: asyncio.Future[bytes],
    gone: asyncio.Task[None],
    pieces: AsyncGenerator[bytes, None],
    close: Close,
) -> None:
    await stop(first, gone)
    await pieces.aclose()
    await close()
