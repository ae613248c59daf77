"""A stub of SGLang's HTTP server: /generate as events, P and D halves that meet, faults on request.

    P  waits for D at the room ─▶ one token, `finish_reason`
    D  waits until P has sent  ─▶ `max_new_tokens` tokens, one event each

Tokens come from a formula over the whole prompt, so a wrong history gives wrong tokens.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from agent_runtime.config import EngineEndpoint, Role
from dualpath_sglang.contract.engine_info import INFO_KEY

VOCABULARY = 1000
BOOTSTRAP_PORT = 9000
DONE = {"type": "length"}
Fault = Literal["", "status", "refuse", "event", "abort", "cut", "end", "hang", "nonsense"]


def formula(prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that the stub generates after `prompt`."""
    seed = zlib.crc32(json.dumps(list(prompt)).encode())
    return [(seed + 7919 * index) % VOCABULARY for index in range(count)]


@dataclass
class StubEngine:
    """`fault` happens once `after` tokens were sent. `go` lets a hanging request continue."""

    name: str
    role: Role = "plain"
    incremental: bool = False
    reports: bool = True
    context_length: int | None = None
    info: object = None
    fault: Fault = ""
    after: int = 0
    healthy: bool = True
    works: bool = True
    """The scheduler answers, however ill the engine is."""
    flushes: bool = True
    url: str = ""
    rooms: dict[int, set[str]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    flushed: int = 0
    running: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    met: asyncio.Condition = field(default_factory=asyncio.Condition)

    def endpoint(self) -> EngineEndpoint:
        port = BOOTSTRAP_PORT if self.role == "prefill" else 0
        return EngineEndpoint(self.name, self.role, self.url, bootstrap_port=port)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_post("/flush_cache", self._flush)
        app.router.add_get("/health", self._health)
        app.router.add_get("/server_info", self._info)
        return app

    def word(self, token: int) -> str:
        return f"<{token}>"

    def output(self, prompt: list[int], count: int) -> list[int]:
        return formula(prompt, count)

    def fault_of(self, rid: str) -> Fault:
        return self.fault

    @property
    def body(self) -> dict[str, Any]:
        return self.bodies[-1]

    def is_done_with(self, rid: str) -> bool:
        """It was told to stop, or had ended by itself."""
        return rid in self.aborted or rid in self.finished

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _info(self, request: web.Request) -> web.Response:
        if not self.works:
            return web.Response(status=500, text="no answer of the scheduler")
        states = [{} if self.info is None else {INFO_KEY: self.info}]
        return web.json_response({"context_length": self.context_length, "internal_states": states})

    async def _flush(self, request: web.Request) -> web.Response:
        if not self.flushes:
            return web.Response(status=400, text="Flush cache failed.\n")
        self.flushed += 1
        return web.Response(text="Cache flushed.\n")

    async def _abort(self, request: web.Request) -> web.Response:
        """SGLang matches ids by prefix."""
        prefix = (await request.json())["rid"]
        self.aborted += [b["rid"] for b in self.bodies if b["rid"].startswith(prefix)]
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.running += 1
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.dropped.append(body["rid"])
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fault = self.fault_of(body["rid"])
        if fault in ("status", "refuse"):
            status = 500 if fault == "status" else 400
            error = {"message": f"stub says {status}"}
            return web.json_response({"error": error}, status=status)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        if self.role == "decode":
            await self._meet(body, "decode here", "sent")
        async for event in self._events(body, fault):
            if event is None:  # the stream breaks off, or ends as if all were well
                if fault == "cut" and request.transport is not None:
                    request.transport.close()
                return reply
            await reply.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if event.get("meta_info", {}).get("finish_reason") == DONE:
                self.finished.append(body["rid"])
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def _meet(self, body: dict[str, Any], says: str, waits_for: str) -> None:
        """Tells the other half something and waits for its word; a failed half never speaks."""
        if self.role == "plain":
            return
        async with self.met:
            said = self.rooms.setdefault(body["bootstrap_room"], set())
            said.add(says)
            self.met.notify_all()
            await self.met.wait_for(lambda: waits_for in said)

    async def _events(
        self, body: dict[str, Any], fault: Fault
    ) -> AsyncIterator[dict[str, Any] | None]:
        wanted = 1 if self.role == "prefill" else body["sampling_params"]["max_new_tokens"]
        output = self.output(body["input_ids"], wanted)
        count = len(output)
        for index in range(count):
            if fault and index == self.after:
                if fault != "hang":
                    yield self._fault_event(body, fault, output[:index])
                    return
                await self.go.wait()
            if self.role == "prefill":
                await self._meet(body, "sent", "decode here")
            last = index + 1 == count
            yield self._event(body, output[: index + 1], DONE if last else None)

    def _fault_event(
        self, body: dict[str, Any], fault: Fault, sent: list[int]
    ) -> dict[str, Any] | None:
        match fault:
            case "event":
                return {"error": {"message": "stub's error event", "code": 500}}
            case "abort":
                reason = {"type": "abort", "message": "stub aborts", "status_code": 503}
                return self._event(body, sent, reason)
            case "nonsense":
                return {"output_ids": "no list"}
        return None

    def _event(
        self, body: dict[str, Any], output: list[int], reason: dict[str, Any] | None
    ) -> dict[str, Any]:
        shown = output[-1:] if self.incremental else output
        prompt = len(body["input_ids"])
        meta = {
            "id": body["rid"],
            "finish_reason": reason,
            "prompt_tokens": prompt,
            "completion_tokens": len(output),
            "cached_tokens": 3,
            "cached_tokens_details": {"device": 1, "host": 2, "storage": 0},
        }
        if self.reports and len(output) == 1:  # the plugin's report comes with the first token
            meta["dualpath"] = [self._report(prompt)]
        return {"text": "".join(map(self.word, shown)), "output_ids": shown, "meta_info": meta}

    def _report(self, prompt: int) -> dict[str, Any]:
        report = {"v": 1, "role": self.role, "device": 1, "storage": 4, "peer": 2}
        if self.role == "decode":
            return report | {"received": prompt - 7, "store_bytes": 64}
        return report | {"computed": prompt - 7, "peer_bytes": 32, "load_s": 0.5}


def pair_up(engines: Sequence[StubEngine]) -> None:
    """Halves meet across these engines."""
    for engine in engines[1:]:
        engine.rooms, engine.met = engines[0].rooms, engines[0].met


@asynccontextmanager
async def serving(engine: StubEngine) -> AsyncIterator[StubEngine]:
    """The engine on a free loopback port. A client that goes away cancels its handler."""
    runner = web.AppRunner(engine.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()
