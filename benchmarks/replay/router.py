"""The router's session API as the replay uses it: one call per method; only flushing is retried."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from benchmarks.replay.records import Failure
from benchmarks.replay.sse import SseParser

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
    times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0


class Router:
    """Raises CallFailed for everything that goes wrong on the way."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")

    async def create(self, metadata: dict[str, Any]) -> str:
        async with self._call("POST", "/v1/sessions", {"metadata": metadata}) as reply:
            return str((await reply.json())["session_id"])

    async def history(self, session_id: str) -> list[int]:
        path = f"/v1/sessions/{quote(session_id, safe='')}?include=token_ids"
        async with self._call("GET", path) as reply:
            return [int(token) for token in (await reply.json())["token_ids"]]

    async def delete(self, session_id: str) -> None:
        async with self._call("DELETE", f"/v1/sessions/{quote(session_id, safe='')}"):
            pass

    async def flush(self) -> None:
        """An engine refuses while it still writes KV of finished turns to the store: ask again."""
        for attempt in range(FLUSH_TRIES):
            try:
                return await self._flush()
            except CallFailed:
                if attempt == FLUSH_TRIES - 1:
                    raise
            await asyncio.sleep(FLUSH_PAUSE_S)

    async def _flush(self) -> None:
        async with self._call("POST", "/admin/flush_cache", {}):
            pass

    async def turn(self, session_id: str, body: dict[str, Any]) -> Streamed:
        """Sends one turn and reads its stream to the end."""
        path = f"/v1/sessions/{quote(session_id, safe='')}/turns"
        streamed = Streamed(sent=time.perf_counter())
        async with self._call("POST", path, body) as reply:
            async for name, data in _events(reply):
                self._take(streamed, name, data)
        if not streamed.done:
            raise CallFailed("stream_ended", "the stream ended without `turn.done`")
        return streamed

    @staticmethod
    def _take(streamed: Streamed, name: str, data: dict[str, Any]) -> None:
        now = time.perf_counter()
        if name == "tokens":
            streamed.token_ids += data["token_ids"]
            streamed.times += [now] * len(data["token_ids"])
        elif name == "turn.done":
            streamed.done, streamed.ended = data, now
        elif name == "error":
            error = data.get("error", {})
            raise CallFailed(str(error.get("type")), str(error.get("message")))

    def _call(
        self, method: str, path: str, body: Any = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return mapped(self._http.request(method, self._url + path, json=body))


@contextlib.asynccontextmanager
async def mapped(
    call: AbstractAsyncContextManager[aiohttp.ClientResponse],
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An HTTP call whose failures, also while its body is read and taken apart, are CallFailed."""
    try:
        async with call as reply:
            if reply.status >= 400:
                raise _refused(reply.status, await reply.text())
            yield reply
    except TimeoutError as error:
        raise CallFailed("timeout", "no answer within the replay's timeout") from error
    except (aiohttp.ClientError, OSError) as error:
        raise CallFailed("connection", f"{type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CallFailed("bad_reply", f"{type(error).__name__}: {error}") from error


def _refused(status: int, text: str) -> CallFailed:
    try:
        error = json.loads(text)["error"]
        return CallFailed(str(error["type"]), str(error["message"]), status)
    except (ValueError, KeyError, TypeError):
        return CallFailed("http_error", f"HTTP {status}: {text[:500]}", status)


async def _events(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    parser = SseParser()
    async for chunk in reply.content.iter_any():
        for name, data in parser.feed(chunk):
            yield name, json.loads(data)
