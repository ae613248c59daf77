"""The real router on a loopback port, in front of stub engines, within the test's own loop."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from stub_engines import StubEngine, pair_up, serving

from agent_runtime.config import RouterConfig
from agent_runtime.http.app import build_app
from agent_runtime.router import Router
from dualpath_sglang.contract import errors
from dualpath_sglang.contract.errors import DualPathError

Event = tuple[str, dict[str, Any]]
PATIENCE_S = 5.0


@dataclass
class World:
    """`engines` in the order of the configuration; `http` talks to the router."""

    router: Router
    http: httpx.AsyncClient
    engines: list[StubEngine]

    @property
    def prefill(self) -> StubEngine:
        return next(e for e in self.engines if e.role == "prefill")

    @property
    def decode(self) -> StubEngine:
        return next(e for e in self.engines if e.role == "decode")

    @property
    def url(self) -> str:
        return str(self.http.base_url)

    async def session(self, **body: Any) -> str:
        reply = await self.http.post("/v1/sessions", json=body)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["session_id"])

    async def turn(self, sid: str, *, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.http.post(f"/v1/sessions/{sid}/turns", json=body, headers=headers)

    async def done(self, sid: str, **body: Any) -> dict[str, Any]:
        """A turn that must succeed."""
        reply = await self.turn(sid, **body)
        assert reply.status_code == 200, reply.text
        tree: dict[str, Any] = reply.json()
        return tree

    async def events(self, sid: str, *, key: str | None = None, **body: Any) -> list[Event]:
        """All events of a streamed turn."""
        async with self.streaming(sid, key=key, **body) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def streaming(
        self, sid: str, *, key: str | None = None, **body: Any
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Leaving the block closes the connection, as a client does that goes away."""
        headers = {} if key is None else {"Idempotency-Key": key}
        body["stream"] = True
        path = f"/v1/sessions/{sid}/turns"
        async with self.http.stream("POST", path, json=body, headers=headers) as reply:
            assert reply.status_code == 200, await reply.aread()
            assert reply.headers["content-type"].startswith("text/event-stream")
            yield _events(reply)

    async def history(self, sid: str) -> list[int]:
        reply = await self.http.get(f"/v1/sessions/{sid}", params={"include": "token_ids"})
        assert reply.status_code == 200, reply.text
        return list(reply.json()["token_ids"])

    async def idle(self) -> None:
        """Returns once nothing is left of any turn, in the router and on the engines."""
        await eventually(self._is_idle)

    def _is_idle(self) -> bool:
        loop = self.router.loop
        counts = [loop.turns_on(name) for name in loop.engines]
        counts += [e.running for e in self.engines]
        return not any(counts) and self.router.loop.inflight == self.router.loop.waiting == 0


async def _events(reply: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in reply.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def failure(reply: httpx.Response) -> dict[str, Any]:
    """The error of an answer, whose shape is checked."""
    tree = reply.json()
    assert tree.keys() == {"error"}
    error: dict[str, Any] = tree["error"]
    assert error.keys() == {"type", "message", "field", "request_id"}
    assert error["request_id"] == reply.headers["x-request-id"]
    assert error["message"]
    return error


def leaves(kind: type[DualPathError] = DualPathError) -> set[type[DualPathError]]:
    """The leaves of the project's exception tree."""
    below = [k for k in kind.__subclasses__() if k.__module__ == errors.__name__]
    return set().union(*(leaves(k) for k in below)) if below else {kind}


async def eventually(condition: Callable[[], object]) -> None:
    """Waits until `condition` holds; fails after a few seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(*engines: StubEngine, ready: bool = True, **settings: Any) -> AsyncIterator[World]:
    """One P and one D unless `engines` says otherwise; `settings` are of RouterConfig."""
    chosen = list(engines) or [StubEngine("p0", "prefill"), StubEngine("d0", "decode")]
    pair_up(chosen)
    async with AsyncExitStack() as stack:
        for engine in chosen:
            await stack.enter_async_context(serving(engine))
        endpoints = tuple(engine.endpoint() for engine in chosen)
        defaults: dict[str, Any] = {"health_interval_s": 0.05, "no_engine_wait_s": 0.0}
        config = RouterConfig(engines=endpoints, **(defaults | settings))
        made = await stack.enter_async_context(served(config))
        made.engines = chosen
        if ready:
            await eventually(lambda: not made.router.loop.missing_roles())
        yield made


@asynccontextmanager
async def served(config: RouterConfig) -> AsyncIterator[World]:
    """The router alone, as `agent_runtime.serve` runs it but for uvloop and signals."""
    router = Router(config, rng=random.Random(1))
    # With its protocol named, asyncio switches Nagle's delay off.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(
        build_app(router), http="httptools", log_level="error", timeout_graceful_shutdown=5
    )
    server = _Server(settings)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await eventually(lambda: server.started or task.done())
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(trust_env=False, base_url=base, timeout=10) as http:
            yield World(router, http, [])
    finally:
        server.stop.set()
        await task
        listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Ends at once when told to, where uvicorn looks ten times a second."""
        await self.on_tick(0)
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, less its pauses; a connection or task that stays fails the test."""
        state = self.server_state
        for server in self.servers:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await eventually(lambda: not state.connections and not state.tasks)
        await self.lifespan.shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are pytest's."""
        yield
