"""HTTP to one SGLang engine. Everything that goes wrong is an EngineFailure naming the engine.

SGLang says in three ways that a request failed: an HTTP status, an `{"error": ...}` event
within a stream of status 200, and a last event whose `finish_reason` has type `abort`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from agent_runtime.config import EngineEndpoint
from agent_runtime.sse import SseParser
from dualpath_sglang.contract.errors import BadRequest, EngineFailure
from dualpath_sglang.contract.ids import RequestId

ABORT_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 5.0
REACH_TIMEOUT_S = 1.0
FLUSH_IDLE_S = 20.0
"""How long an engine may take to become idle before it refuses to flush."""


class EngineUnreachable(EngineFailure):
    """No connection, or it broke. A broken one may be this request's own fault."""


@dataclass(frozen=True)
class Chunk:
    """New tokens of one event. `finish_reason`, SGLang's, is null but in the last one."""

    token_ids: list[int]
    text: str
    finish_reason: dict[str, Any] | None
    meta: dict[str, Any]


class EngineClient:
    def __init__(self, http: aiohttp.ClientSession, endpoint: EngineEndpoint) -> None:
        self.endpoint = endpoint
        self._http = http
        self._url = endpoint.url.rstrip("/")
        self._name = f"{endpoint.role} engine {endpoint.name!r}"

    async def generate(self, body: bytes) -> AsyncGenerator[Chunk, None]:
        """The stream of one request; its last chunk has a `finish_reason`.

        Raises EngineFailure, and BadRequest where the engine finds fault with the request.
        """
        finished = False
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.post(
                f"{self._url}/generate", data=body, headers=headers
            ) as reply:
                if reply.status != 200:
                    raise self._refused(reply.status, await reply.read())
                async for chunk in self._chunks(reply):
                    yield chunk
                    # Read on to the end: only then can the connection serve another turn.
                    finished = finished or chunk.finish_reason is not None
        except (aiohttp.ClientError, OSError) as error:
            if not finished:
                raise self._unreachable(error) from error
        if not finished:
            raise EngineFailure(f"{self._name}: the stream ended before the turn was done")

    async def abort(self, request_id: RequestId) -> None:
        """Best effort: an engine that is gone has nothing to abort."""
        timeout = aiohttp.ClientTimeout(total=ABORT_TIMEOUT_S)
        url = f"{self._url}/abort_request"
        try:
            async with self._http.post(url, json={"rid": request_id}, timeout=timeout) as reply:
                await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return

    async def health(self, timeout_s: float) -> None:
        """Returns when the engine serves. Raises EngineUnreachable or EngineFailure."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._http.get(f"{self._url}/health", timeout=timeout) as reply:
                await reply.read()
                status = reply.status
        except TimeoutError as error:
            raise EngineFailure(f"{self._name}: no answer in {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        if status != 200:
            raise EngineFailure(f"{self._name}: /health says {status}")

    async def is_gone(self) -> bool:
        """Nobody listens any more. An engine that is slow to answer is there."""
        try:
            await self.health(REACH_TIMEOUT_S)
        except EngineUnreachable:
            return True
        except EngineFailure:
            return False
        return False

    async def server_info(self) -> Mapping[str, Any]:
        """What the engine was started with and says of itself. Raises EngineFailure.

        The scheduler process answers too, between two batches.
        """
        timeout = aiohttp.ClientTimeout(total=INFO_TIMEOUT_S)
        try:
            async with self._http.get(f"{self._url}/server_info", timeout=timeout) as reply:
                info = orjson.loads(await reply.read())
        except TimeoutError as error:
            raise EngineFailure(f"{self._name}: /server_info did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise EngineFailure(f"{self._name}: /server_info makes no sense: {error}") from error
        if not isinstance(info, dict):
            raise EngineFailure(f"{self._name}: /server_info is no object")
        return info

    async def flush(self) -> None:
        """Empties the engine's own caches once it is idle. Raises EngineFailure."""
        timeout = aiohttp.ClientTimeout(total=FLUSH_IDLE_S + 10)
        url = f"{self._url}/flush_cache?timeout={FLUSH_IDLE_S:g}"
        try:
            async with self._http.post(url, timeout=timeout) as reply:
                text = (await reply.read()).decode(errors="replace")
                status = reply.status
        except TimeoutError as error:
            raise EngineFailure(f"{self._name}: flush_cache did not end in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        if status != 200:
            raise EngineFailure(f"{self._name}: flush_cache says {status}: {text.strip()[:300]}")

    async def _chunks(self, reply: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
        seen, parser = _Seen(), SseParser()
        async for data in reply.content.iter_any():
            for _, payload in parser.feed(data):
                if payload != b"[DONE]":
                    yield self._chunk(payload, seen)

    def _chunk(self, payload: bytes, seen: _Seen) -> Chunk:
        try:
            out = orjson.loads(payload)
            if "error" in out:
                error = out["error"]
                raise self._failed(str(error.get("message")), error.get("code"))
            meta = out["meta_info"]
            reason = meta["finish_reason"]
            if reason is not None and str(reason["type"]) == "abort":
                raise self._failed(str(reason.get("message")), reason.get("status_code"))
            token_ids, text = seen.new(out)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineFailure(
                f"{self._name}: an event it sent makes no sense: {error}"
            ) from error
        return Chunk(token_ids, text, reason, meta)

    def _refused(self, status: int, body: bytes) -> Exception:
        message = body.decode(errors="replace")[:500]
        try:
            data = orjson.loads(body)
            message = str(data["error"]["message"] if "error" in data else data["detail"])
        except (ValueError, KeyError, TypeError):
            pass
        return self._failed(message, status)

    def _failed(self, message: str, status: Any) -> Exception:
        """400 and 422: the request itself is at fault, and no other engine would take it."""
        if status in (400, 422):
            return BadRequest(f"{self._name} refused the request: {message}")
        code = f" ({status})" if status is not None else ""
        return EngineFailure(f"{self._name} failed{code}: {message}")

    def _unreachable(self, error: Exception) -> EngineUnreachable:
        detail = str(error) or type(error).__name__
        return EngineUnreachable(f"{self._name} at {self._url} is gone: {detail}")


class _Seen:
    """Finds what is new in an event, whether the engine streams increments or all so far.

    `completion_tokens` counts all tokens so far in both modes; what is new is a suffix of
    `output_ids` in both modes.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._chars = 0

    def new(self, out: dict[str, Any]) -> tuple[list[int], str]:
        """Raises ValueError when tokens are missing."""
        ids: list[int] = out["output_ids"]
        text: str = out.get("text") or ""
        total: int = out["meta_info"]["completion_tokens"]
        fresh = total - self._tokens
        if fresh < 0 or fresh > len(ids):
            raise ValueError(f"{total} tokens so far, {self._tokens} seen, {len(ids)} sent")
        if len(ids) > fresh:
            text = text[self._chars :]  # this engine repeats everything
        self._tokens = total
        self._chars += len(text)
        return ids[len(ids) - fresh :], text


def new_http() -> aiohttp.ClientSession:
    """The one session that all engines share. Turns have a deadline of their own.

    Idle connections are given up before SGLang's server does so after 5 s: a request sent on a
    connection that the other side is closing would fail.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)
