"""A router that is not one: sessions in memory, tokens by a formula, faults on request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web


def formula(prompt: list[int], count: int) -> list[int]:
    """Output that depends on every prompt token: what the stub router and engine 'generate'."""
    history = list(prompt)
    for _ in range(count):
        history.append(int.from_bytes(hashlib.sha256(repr(history).encode()).digest()[:2], "big"))
    return history[len(prompt) :]


class StubRouter:
    """`faults[turn number]` is one of: status, event, cut, short, lie, hang."""

    def __init__(self) -> None:
        self.sessions: dict[str, list[int]] = {}
        self.turns_of: dict[str, int] = {}
        self.metadata: dict[str, Any] = {}
        self.log: list[tuple[str, ...]] = []
        self.bodies: list[dict[str, Any]] = []
        self.faults: dict[int, str] = {}
        self.fault_session: str | None = None
        self.flush_failures = 0
        self.decode_reports = True
        self.storage = 0
        self.running = self.most_running = 0
        self.first_turn = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/sessions", self.create)
        app.router.add_get("/v1/sessions/{sid}", self.show)
        app.router.add_delete("/v1/sessions/{sid}", self.delete)
        app.router.add_post("/v1/sessions/{sid}/turns", self.turn)
        app.router.add_post("/admin/flush_cache", self.flush)
        return app

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        sid = f"s/{len(self.sessions)}"
        self.sessions[sid], self.turns_of[sid] = [], 0
        self.metadata[sid] = body["metadata"]
        self.log.append(("create", sid))
        return web.json_response(
            {
                "session_id": sid,
                "created_at": 0,
                "metadata": body["metadata"],
                "turns": 0,
                "history_tokens": 0,
                "busy": False,
            },
            status=201,
        )

    async def show(self, request: web.Request) -> web.Response:
        sid = request.match_info["sid"]
        return web.json_response({"session_id": sid, "token_ids": self.sessions[sid]})

    async def delete(self, request: web.Request) -> web.Response:
        self.log.append(("delete", request.match_info["sid"]))
        return web.Response(status=204)

    async def flush(self, request: web.Request) -> web.Response:
        self.log.append(("flush",))
        if self.flush_failures:
            self.flush_failures -= 1
            return _error(502, "engine_failure", "not idle")
        return web.json_response({"flushed": ["p0", "d0"]})

    async def turn(self, request: web.Request) -> web.StreamResponse:
        sid, body = request.match_info["sid"], await request.json()
        number = self.turns_of[sid]
        self.bodies.append(body)
        assert body["if_turn"] == number
        assert body["stream"] is True
        history = self.sessions[sid]
        prompt = history[: body.get("keep", len(history))] + body["token_ids"]
        here = self.fault_session in (None, self.metadata[sid]["trace_session"])
        fault = self.faults.get(number) if here else None
        self.log.append(("turn", sid, str(number)))
        if fault == "status":
            return _error(409, "conflict", "busy session")
        self.running += 1
        self.first_turn.set()
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._stream(request, sid, number, prompt, body, fault)
        finally:
            self.running -= 1

    async def _stream(
        self,
        request: web.Request,
        sid: str,
        number: int,
        prompt: list[int],
        body: dict[str, Any],
        fault: str | None,
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        await _send(reply, "turn.started", {"turn": number, "prompt_tokens": len(prompt)})
        if fault == "event":
            await _send(reply, "error", {"error": {"type": "engine_failure", "message": "P died"}})
            return reply
        if fault == "hang":
            await asyncio.sleep(60)
        output = formula(prompt, body["sampling"]["max_new_tokens"])
        for token in output:
            await asyncio.sleep(0.001)
            await _send(reply, "tokens", {"token_ids": [token], "text": "x"})
        if fault == "cut":
            return reply
        if fault == "short":
            output = output[:-1]
        self.turns_of[sid] += 1
        self.sessions[sid] = prompt + output
        if fault == "lie":
            self.sessions[sid] = [*self.sessions[sid][:-1], -1]
        await _send(reply, "turn.done", self._done(sid, number, prompt, output))
        return reply

    def _done(self, sid: str, number: int, prompt: list[int], output: list[int]) -> dict[str, Any]:
        cached = len(prompt) // 2
        decode = {"device": cached, "host": 0, "storage": 1, "peer": 0}
        return {
            "session_id": sid,
            "turn": number,
            "prompt_tokens": len(prompt),
            "token_ids": output,
            "text": "",
            "finish_reason": "length",
            "history_tokens": len(prompt) + len(output),
            "replayed": False,
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(output),
                "cached_tokens": cached,
                "computed_tokens": len(prompt) - cached,
                "prefill": {
                    "device": cached,
                    "host": 0,
                    "storage": self.storage,
                    "computed": len(prompt) - cached,
                },
                "decode": decode if self.decode_reports else None,
                "load": {"prefill": {"store_bytes": 512, "load_s": 0.25}},
            },
            "placement": {
                "prefill": "p0",
                "decode": "d0",
                "split": 2,
                "pages": 3,
                "reason": "only one",
            },
            "timing": {"queued_s": 0.001, "ttft_s": 0.01, "e2e_s": 0.02},
        }


class StubEngine:
    """SGLang's /generate by the same formula. `wrong`: prompt lengths whose last token differs."""

    def __init__(self) -> None:
        self.wrong: set[int] = set()
        self.broken: set[int] = set()
        self.bodies: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self.generate)
        return app

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        prompt = body["input_ids"]
        if len(prompt) in self.broken:
            return web.json_response({"error": {"message": "boom"}}, status=500)
        output = formula(prompt, body["sampling_params"]["max_new_tokens"])
        if len(prompt) in self.wrong:
            output[-1] += 1
        return web.json_response({"text": "", "output_ids": output, "meta_info": {}})


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """The base URL of the app while it is served on a free loopback port."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await web.SockSite(runner, sock).start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        await runner.cleanup()


@contextmanager
def served(app: web.Application) -> Iterator[str]:
    """The app's URL, served by another thread, because the command line has its own loop."""
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    url: list[str] = []

    async def main() -> None:
        async with serving(app) as base:
            url.append(base)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(10)
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _send(reply: web.StreamResponse, name: str, data: dict[str, Any]) -> None:
    await reply.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())


def _error(status: int, kind: str, message: str) -> web.Response:
    error = {"type": kind, "message": message, "field": None, "request_id": "r"}
    return web.json_response({"error": error}, status=status)
