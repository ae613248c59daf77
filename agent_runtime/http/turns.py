"""POST /v1/sessions/{id}/turns: one turn, as JSON or as server-sent events.

turn.started ─▶ tokens ... ─▶ turn.done        (or `error`, once the stream has begun)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import orjson
from fastapi import Request, Response

from agent_runtime.dispatch.events import Done, Failed, Started, Tokens, TurnEvents
from agent_runtime.http import delivery, failures, sse, views
from agent_runtime.trajectory.session import Session
from dualpath_sglang.contract.errors import DualPathError
from dualpath_sglang.contract.ids import RequestId

log = logging.getLogger("dualpath.turns")


@dataclass(frozen=True)
class Told:
    """A turn under way, and whose it is. `id`: as in the engines' logs."""

    session: Session
    events: TurnEvents
    id: RequestId


async def answer(request: Request, turn: Told) -> Response:
    """The whole turn as one JSON object. A client that goes away cancels it."""
    try:
        last = await delivery.unless_gone(turn.events.last(), request.receive)
    finally:
        await turn.events.close()
    if last is None:
        return Response(status_code=delivery.CLIENT_LEFT)
    _log(request, turn, last)
    if isinstance(last, Failed):
        raise last.error
    tree = views.turn_tree(turn.session, last.record, replayed=last.replayed)
    return Response(orjson.dumps(tree), media_type="application/json")


async def stream(request: Request, turn: Told) -> Response:
    """A stream, once the turn has been placed; what fails before is an ordinary error answer."""

    def failed(error: Exception) -> bytes:
        request_id: str = request.state.request_id
        return sse.event(
            "error", failures.error_tree(failures.known(error, request_id), request_id)
        )

    pieces = _encoded(request, turn)
    return await delivery.stream(pieces, turn.events.close, failed, request.receive)


async def _encoded(request: Request, turn: Told) -> AsyncGenerator[bytes, None]:
    async for told in turn.events:
        match told:
            case Started():
                tree = {"turn": told.turn, "prompt_tokens": told.prompt_tokens}
                yield sse.event("turn.started", tree)
            case Tokens():
                yield sse.event("tokens", {"token_ids": told.token_ids, "text": told.text})
            case Done(record):
                _log(request, turn, told)
                done = views.turn_tree(turn.session, record, replayed=told.replayed)
                yield sse.event("turn.done", done)
            case Failed(error):
                _log(request, turn, told)
                raise error


def _log(request: Request, turn: Told, last: Done | Failed) -> None:
    """The one place where the id that a client knows meets the one in the engines' logs."""
    names = (request.state.request_id, turn.session.head.id, turn.id)
    match last:
        case Done(record):
            log.info("%s %s %s: %s", *names, views.summary(record))
        case Failed(DualPathError() as error):
            log.info("%s %s %s: %s: %s", *names, error.kind, error.message)
