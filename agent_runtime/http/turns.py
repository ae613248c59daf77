"""POST /v1/sessions/{id}/turns: one turn, as JSON or as server-sent events.

    turn.started ─▶ tokens ... ─▶ turn.done        (or `error`, once the stream has begun)

Whoever wants a turn may go away: then the turn is cancelled on its engines. SGLang's and
Starlette's own checks only notice when they send, so the connection is watched here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from agent_runtime.dispatch.pipeline import Finished
from agent_runtime.dispatch.turn import Sink
from agent_runtime.http import failures, views
from agent_runtime.scheduling.placement import Placed
from agent_runtime.trajectory.model import TurnRecord
from agent_runtime.trajectory.session import Session

RunTurn = Callable[[Sink], Coroutine[Any, Any, Finished]]
QUEUED_EVENTS = 64
"""A client that reads slower than this many events behind slows its engine's stream down."""


class NoSink:
    """For a turn that is answered at once when it is done."""

    async def started(self, placed: Placed, turn: int, prompt_tokens: int) -> None:
        return None

    async def tokens(self, token_ids: list[int], text: str) -> None:
        return None


class EventSink:
    """Events as bytes, in a bounded queue; `None` ends them."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_EVENTS)

    async def started(self, placed: Placed, turn: int, prompt_tokens: int) -> None:
        await self.begin(turn, prompt_tokens)

    async def begin(self, turn: int, prompt_tokens: int) -> None:
        await self.events.put(event("turn.started", {"turn": turn, "prompt_tokens": prompt_tokens}))

    async def tokens(self, token_ids: list[int], text: str) -> None:
        await self.events.put(event("tokens", {"token_ids": token_ids, "text": text}))


def event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


async def answer(request: Request, session: Session, run: RunTurn) -> Response:
    """The whole turn as one JSON object. A client that goes away cancels it."""
    task = asyncio.create_task(run(NoSink()))
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=failures.CLIENT_LEFT)
        done = task.result()
        tree = views.turn_tree(session, done.record, replayed=done.replayed)
        return Response(orjson.dumps(tree), media_type="application/json")
    finally:
        await _stop(task, gone)


async def stream(request: Request, session: Session, run: RunTurn) -> Response:
    """A stream, once the turn has been placed; what fails before is an ordinary error answer."""
    sink = EventSink()
    task = asyncio.create_task(_run_to_the_end(request, session, run, sink))
    first = asyncio.create_task(sink.events.get())
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait((task, first, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not first.done():
            await _stop(task, first, gone)
            return Response(status_code=failures.CLIENT_LEFT)
        if task.done() and not first.done():
            task.result()  # raises what went wrong
    except BaseException:
        await _stop(task, first, gone)
        raise
    return TurnStream(task, sink, first, gone)


class TurnStream(Response):
    """Sends the events as they come; ends the turn when the client is gone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        task: asyncio.Task[None],
        sink: EventSink,
        first: asyncio.Task[bytes | None],
        gone: asyncio.Task[None],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._task, self._sink, self._first, self._gone = task, sink, first, gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        try:
            await asyncio.wait((pump, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                with contextlib.suppress(OSError):  # the client went while we wrote
                    pump.result()
        finally:
            await _stop(self._task, self._first, self._gone, pump)

    async def _pump(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        data = await self._first
        while data is not None:
            yield data
            data = await self._sink.events.get()


async def _run_to_the_end(
    request: Request, session: Session, run: RunTurn, sink: EventSink
) -> None:
    """Raises only while nothing was put into the stream; afterwards the error is its last event."""
    request_id = request.state.request_id
    watched = _Watched(sink)
    try:
        done = await run(watched)
        if done.replayed:
            await _replay(done.record, sink)
        tree = views.turn_tree(session, done.record, replayed=done.replayed)
        await sink.events.put(event("turn.done", tree))
    except Exception as error:
        if not watched.begun:
            raise
        tree = failures.error_tree(failures.known(error, request_id), request_id)
        await sink.events.put(event("error", tree))
    await sink.events.put(None)


async def _replay(record: TurnRecord, sink: EventSink) -> None:
    """The events of a turn that is over, so that a client need not tell it from a new one."""
    await sink.begin(record.turn, record.prompt_tokens)
    if record.output:
        await sink.tokens(record.output.tolist(), record.text)


class _Watched:
    """A sink that remembers whether anything has gone through it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.begun = False

    async def started(self, placed: Placed, turn: int, prompt_tokens: int) -> None:
        self.begun = True
        await self._sink.started(placed, turn, prompt_tokens)

    async def tokens(self, token_ids: list[int], text: str) -> None:
        await self._sink.tokens(token_ids, text)


async def _gone(receive: Receive) -> None:
    """Returns when the client has disconnected; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancels and waits: afterwards the engines have been told, or are being told."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
