"""The session API, version 1."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from agent_runtime.dispatch.bodies import new_request_id
from agent_runtime.http import turns, views
from agent_runtime.http.access import for_clients, owner_of
from agent_runtime.http.body import limited_body
from agent_runtime.http.schemas import CreateSession, TurnBody, parse, schema_of, turn_request
from agent_runtime.http.turns import Told
from agent_runtime.router import Router
from dualpath_sglang.contract.errors import BadRequest
from dualpath_sglang.contract.ids import SessionId

INCLUDES = ("token_ids",)


def _body_of(model: type[CreateSession] | type[TurnBody]) -> dict[str, Any]:
    """Bodies are parsed here and not by FastAPI, so the OpenAPI document is told about them."""
    return {"requestBody": {"content": {"application/json": {"schema": schema_of(model)}}}}


def _json(tree: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(tree), status_code=status, media_type="application/json")


def session_routes(router: Router) -> APIRouter:
    routes = APIRouter(dependencies=for_clients(router.keys))
    limit = router.config.max_body_bytes

    @routes.post("/v1/sessions", openapi_extra=_body_of(CreateSession))
    async def create(request: Request) -> Response:
        body = parse(CreateSession, await limited_body(request, limit))
        session_id = None if body.session_id is None else SessionId(body.session_id)
        session = await router.sessions.create(owner_of(request), session_id, body.metadata)
        return _json(views.session_tree(session), 201)

    @routes.get("/v1/sessions/{session_id}")
    async def show(session_id: str, request: Request) -> Response:
        include = request.query_params.getlist("include")
        for name in include:
            if name not in INCLUDES:
                raise BadRequest(f"include is {name!r}: use one of {INCLUDES}", field="include")
        session = await router.sessions.get(owner_of(request), SessionId(session_id))
        return _json(views.session_tree(session, token_ids="token_ids" in include))

    @routes.delete("/v1/sessions/{session_id}")
    async def delete(session_id: str, request: Request) -> Response:
        await router.sessions.delete(owner_of(request), SessionId(session_id))
        return Response(status_code=204)

    @routes.post("/v1/sessions/{session_id}/turns", openapi_extra=_body_of(TurnBody))
    async def turn(session_id: str, request: Request) -> Response:
        body = parse(TurnBody, await limited_body(request, limit))
        wanted = turn_request(body, request.headers.get("idempotency-key"))
        session = await router.sessions.get(owner_of(request), SessionId(session_id))
        turn_id = new_request_id(router.rng)
        told = Told(session, router.pipeline.start(turn_id, session, wanted), turn_id)
        return await (turns.stream if body.stream else turns.answer)(request, told)

    return routes
