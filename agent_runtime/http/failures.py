"""Every failure as one JSON shape: `{"error": {"type", "message", "field", "request_id"}}`."""

from __future__ import annotations

import logging
import math
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from agent_runtime.http import delivery
from agent_runtime.http.body import REQUEST_ID
from dualpath_sglang.contract.errors import DualPathError, Internal, Saturated, Unauthorized

log = logging.getLogger("dualpath.http")

_KINDS = {404: "not_found", 405: "method_not_allowed"}


def error_tree(error: DualPathError, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "type": error.kind,
            "message": error.message,
            "field": error.field,
            "request_id": request_id,
        }
    }


def known(error: BaseException, request_id: str) -> DualPathError:
    """The error itself, or for a defect of ours one that says where to look."""
    if isinstance(error, DualPathError):
        return error
    log.error("request %s failed", request_id, exc_info=error)
    return Internal(f"the router failed; its log has the cause under request {request_id}")


def respond(error: DualPathError, request_id: str) -> Response:
    # Also here: a defect is answered outside of the middleware that adds it to all others.
    headers = {REQUEST_ID: request_id}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Saturated):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return Response(
        orjson.dumps(error_tree(error, request_id)),
        status_code=error.http_status,
        headers=headers,
        media_type="application/json",
    )


def install(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        return respond(known(error, request.state.request_id), request.state.request_id)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        made = DualPathError(f"{request.method} {request.url.path}: {error.detail}")
        tree = error_tree(made, request.state.request_id)
        tree["error"]["type"] = _KINDS.get(error.status_code, "bad_request")
        return Response(
            orjson.dumps(tree),
            status_code=error.status_code,
            headers=error.headers,
            media_type="application/json",
        )

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=delivery.CLIENT_LEFT)

    app.add_exception_handler(DualPathError, ours)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, ours)
