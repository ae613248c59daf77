"""Request bodies with a limit, and a request id on every answer."""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from typing import Any

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from dualpath_sglang.contract.errors import BadRequest, BodyTooLarge

REQUEST_ID = "x-request-id"


async def limited_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge at the first byte over `limit`, or before by its
    announced length; what the client still sends is not read."""
    announced = request.headers.get("content-length")
    if announced is not None:
        if not announced.isdigit():
            raise BadRequest("Content-Length is not a number", field="Content-Length")
        if int(announced) > limit:
            raise _too_large(announced, limit)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _too_large("more", limit)
    return bytes(body)


def _too_large(size: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {size} bytes, the limit is max_body_bytes={limit}: append less per turn"
    )


class RequestIds:
    """ASGI middleware: `request.state.request_id`, and the same in the answer's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = "r-" + secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, tagged)
