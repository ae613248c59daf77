"""Stubs for the doctor: engines that answer its HTTP, a store object without a store, a master."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from agent_runtime.doctor.places import Part, Places
from agent_runtime.doctor.store_object import Spec, Step
from dualpath_sglang.contract.engine_info import INFO_KEY, EngineInfo
from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.contract.probe import (
    PROBES_KEY,
    SETTING,
    ProbeOrder,
    ProbeResult,
    order_from,
    seeded_parts,
    sum_of,
)

LAYOUT = KeyLayout("model_", ("_0_k", "_0_v"), 16, 1)
PART_BYTES = 16 * 8
HOOK = {"target": "sglang.srt.m.C.f", "kind": "after", "why": "a reason", "live": True}


@dataclass
class StubEngine:
    """Answers as an engine with the plugin; `fails` breaks the probes of a source."""

    name: str
    role: str
    exports: tuple[str, ...] = ()
    fingerprint: str = "same"
    master: str = "10.0.0.1:50051"
    hooks: list[dict[str, Any]] = field(default_factory=lambda: [dict(HOOK)])
    dead_threads: list[str] = field(default_factory=list)
    plugin: bool = True
    knows_probes: bool = True
    fails: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    busy: int = 0
    post_status: int = 200
    pending: int = 1
    orders: list[ProbeOrder] = field(default_factory=list)
    results: dict[str, list[ProbeResult]] = field(default_factory=dict)
    url: str = ""
    fleet: tuple[StubEngine, ...] = ()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/server_info", self._info)
        app.router.add_post("/set_internal_state", self._set)
        return app

    def info(self) -> EngineInfo:
        hooks = tuple(h["target"] for h in self.hooks if h["live"])
        return EngineInfo(
            self.role, "0.5.23", 16, 16, self.fingerprint, "nonce", self.exports, hooks, LAYOUT
        )

    async def _info(self, request: web.Request) -> web.Response:
        state: dict[str, Any] = {INFO_KEY: self.info().to_tree()} if self.plugin else {}
        if self.knows_probes and self.results:
            state[PROBES_KEY] = {
                name: (left.pop(0) if len(left) > 1 else left[0]).to_tree()
                for name, left in self.results.items()
            }
        return web.json_response({"internal_states": [state]})

    async def _set(self, request: web.Request) -> web.Response:
        if self.post_status != 200:
            return web.Response(status=self.post_status, text="Unauthorized")
        (setting,) = (await request.json())["server_args"]
        assert setting.startswith(SETTING)
        order = order_from(setting)
        self.orders.append(order)
        running = [ProbeResult(order.id, "running")] * self.pending
        self.results[order.id] = [*running, self._result(order)]
        return web.json_response([True])

    def _result(self, order: ProbeOrder) -> ProbeResult:
        if order.source == "describe":
            return ProbeResult(order.id, "done", facts=self._facts())
        if self.busy:
            self.busy -= 1
            return ProbeResult(order.id, "failed", "busy", "another doctor")
        if order.source in self.fails:
            return ProbeResult(order.id, "failed", *self.fails[order.source])
        held = self._of_peer(order.peer) if order.source == "peer" else order
        name = held.name if held is not None else "nothing"
        sums = [sum_of(part) for part in seeded_parts(name, 2, PART_BYTES)]
        if order.source in self.wrong:
            sums[1] = sum_of(b"something else")
        return ProbeResult(order.id, "done", sums=tuple(sums), slot=7, seconds=0.001)

    def _of_peer(self, peer: str) -> ProbeOrder | None:
        """What the engine with that export server has in its scratch page."""
        orders = [o for engine in self.fleet if peer in engine.exports for o in engine.orders]
        named = [order for order in orders if order.name]
        return named[-1] if named else None

    def _facts(self) -> dict[str, Any]:
        store = {"master": self.master, "protocol": "tcp", "device": "", "tenant": "default"}
        return {
            "hooks": self.hooks,
            "store": store,
            "peer_protocol": "tcp",
            "dead_threads": self.dead_threads,
        }


class StubObject:
    """Writes nothing; `fails` is the step that goes wrong."""

    def __init__(self, spec: Spec, fails: str = "", left: bool = False) -> None:
        self.spec = spec
        self.removed = 0
        self._fails = fails
        self._left = left
        self._steps = iter(("mount", "write", "find", "read"))

    async def step(self) -> Step:
        name = next(self._steps)
        return Step(name, "it went wrong" if name == self._fails else "", 0.002)

    async def remove(self) -> Step:
        self.removed += 1
        return Step("remove", "a lease" if self._left else "")


@contextlib.asynccontextmanager
async def served(*apps: web.Application) -> AsyncIterator[list[str]]:
    """The URLs of the applications."""
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for app in apps:
            runner = web.AppRunner(app, shutdown_timeout=0.1, max_line_size=2**16)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            urls.append(f"http://{host}:{port}")
        yield urls


@contextlib.asynccontextmanager
async def world(*engines: StubEngine, admin: str = "") -> AsyncIterator[World]:
    async with served(*(engine.app() for engine in engines)) as urls:
        for engine, url in zip(engines, urls, strict=True):
            engine.url, engine.fleet = url, engines
        parts = tuple(Part(e.name, "engine", e.role, e.url) for e in engines)
        async with aiohttp.ClientSession() as http:
            yield World(http, Places(parts, admin))


@dataclass(frozen=True)
class World:
    http: aiohttp.ClientSession
    places: Places


def master_app(ok: bool = True, broken: bool = False) -> web.Application:
    """A stub of the master's HTTP port: the first answer says `ok`, later ones that all is gone."""
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if broken:
            return web.Response(status=500, text="no")
        keys = request.query["keys"].split(",")
        return web.json_response({"data": {key: {"ok": ok and asked == 1} for key in keys}})

    app = web.Application()
    app.router.add_get("/batch_query_keys", answer)
    return app
