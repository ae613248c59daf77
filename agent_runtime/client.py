"""Python client of the router's session API: `DualPathClient`, and the same for asyncio.

    with DualPathClient("http://127.0.0.1:30000") as client:
        session = client.create()
        for event in client.stream(session.session_id, text="hello", max_new_tokens=64):
            ...

What the router refuses is raised as the leaf of `contract.errors` that the router itself raised,
with its `http_status`, `field` and, as a note, the request id of the router's log. Whatever goes
wrong on the way is a `RouterFailure`. Nothing is tried again: give a turn an `idempotency_key` and
send it once more.

A router on this machine is asked directly, whatever proxy the environment names; for others the
environment counts, and errors name the proxy.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar, Unpack

import aiohttp
import httpx
from yarl import URL

from agent_runtime import client_wire as wire
from agent_runtime.client_wire import (
    CONNECT_TIMEOUT_S,
    TIMEOUT_S,
    Call,
    NewTokens,
    Reply,
    SessionInfo,
    TurnDone,
    TurnEvent,
    TurnOptions,
    TurnStarted,
)
from agent_runtime.proxies import is_local, proxy_of
from agent_runtime.settings import KEY_VARIABLE
from dualpath_sglang.contract.errors import RouterFailure

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
    """Every method raises DualPathError. `api_key`: else that of the variable DUALPATH_API_KEY.
    `timeout`: seconds without a byte of the answer."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout: float = TIMEOUT_S
    ) -> None:
        self._url = base_url.rstrip("/")
        self._key = api_key or os.environ.get(KEY_VARIABLE)
        with _mapped(self._url):
            self._http = httpx.Client(
                timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S)),
                trust_env=not is_local(base_url),
            )

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
        with _mapped(self._url), self._http.stream(**self._request(call)) as reply:
            if reply.status_code != 200:
                call.read(Reply(reply.status_code, reply.headers, reply.read()))
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
        with _mapped(self._url):
            reply = self._http.request(**self._request(call))
            return call.read(Reply(reply.status_code, reply.headers, reply.content))

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        url, headers = self._url + call.path, call.all_headers(self._key)
        return {"method": call.method, "url": url, "content": call.content, "headers": headers}


class AsyncDualPathClient:
    """As `DualPathClient`, for asyncio. Connections are made, and closed, in one event loop."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout: float = TIMEOUT_S
    ) -> None:
        self._url = base_url.rstrip("/")
        self._key = api_key or os.environ.get(KEY_VARIABLE)
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(timeout, CONNECT_TIMEOUT_S), sock_read=timeout
        )
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

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
        with _mapped(self._url):
            async with self._request(call) as reply:
                if reply.status != 200:
                    call.read(Reply(reply.status, reply.headers, await reply.read()))
                async for data in reply.content.iter_any():
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
        with _mapped(self._url):
            async with self._request(call) as reply:
                return call.read(Reply(reply.status, reply.headers, await reply.read()))

    def _request(self, call: Call[Any]) -> aiohttp.client._RequestContextManager:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=not is_local(self._url),
            )
        return self._opened.request(
            call.method,
            URL(self._url + call.path, encoded=True),
            data=call.content,
            headers=call.all_headers(self._key),
            allow_redirects=False,
        )


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """What goes wrong between the client and the router is a RouterFailure."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise _broken(url, f"no answer in time ({type(error).__name__})") from error
    # ImportError: httpx needs another package for the kind of proxy that the environment names.
    except (aiohttp.ClientError, httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        raise _broken(url, f"{type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wire.makes_no_sense(error) from error


def _broken(url: str, what: str) -> RouterFailure:
    proxy = proxy_of(url)
    through = f"; asked through the proxy {proxy}, as the environment says" if proxy else ""
    return RouterFailure(f"{url}: {what}{through}")
