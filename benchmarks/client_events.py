"""CPU of a client per streamed event: the Python clients beside the bare libraries below them.

    python -m benchmarks.client_events [--streams 16] [--events 500] [--rounds 5]

A stub router in a process of its own sends events of one token in `streams` sessions at once, with
a pause after each, so that each is read alone, as those of an engine are. Every arm reads them all.
Figures are microseconds of the client process's CPU for one event, the median of `rounds` rounds
in which the arms take turns.

aiohttp, httpx: bytes are received and thrown away. async: `AsyncDualPathClient`, typed events.
replay: what `dualpath replay` does with them. sync: `DualPathClient`, one stream after another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import platform
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import httpx
from aiohttp import web

from agent_runtime.client import AsyncDualPathClient, DualPathClient, TurnOptions
from agent_runtime.http.sse import event
from benchmarks.replay.router import Router

USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "cached_tokens": 0,
    "prefill": {"device": 0, "host": 0, "storage": 0, "peer": 0},
    "decode": None,
}
PLACEMENT = {"prefill": "p", "decode": "d", "split": None, "reason": "stub"}
TIMING = {"queued_s": 0.0, "ttft_s": 0.0, "e2e_s": 0.0}
OPTIONS = TurnOptions(token_ids=[1])
PATH = "/v1/sessions/s/turns"


def done(events: int) -> dict[str, Any]:
    return {
        "session_id": "s",
        "turn": 0,
        "prompt_tokens": 1,
        "token_ids": list(range(events)),
        "text": "x" * events,
        "finish_reason": "length",
        "history_tokens": 1 + events,
        "replayed": False,
        "usage": USAGE,
        "placement": PLACEMENT,
        "timing": TIMING,
    }


def serve(sock: socket.socket, events: int, pause_s: float) -> None:
    """The stub router: every POST is answered with the same stream."""
    first = event("turn.started", {"turn": 0, "prompt_tokens": 1})
    tokens = [event("tokens", {"token_ids": [i], "text": " word"}) for i in range(events)]
    last = event("turn.done", done(events))

    async def turn(request: web.Request) -> web.StreamResponse:
        await request.read()
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for data in (first, *tokens, last):
            await reply.write(data)
            await asyncio.sleep(pause_s)
        return reply

    app = web.Application()
    app.router.add_post(PATH, turn)
    web.run_app(app, sock=sock, print=None, handle_signals=False)


async def bare_aiohttp(url: str, streams: int) -> None:
    async with aiohttp.ClientSession() as http:

        async def one() -> None:
            async with http.post(url + PATH, json=OPTIONS) as reply:
                async for _ in reply.content.iter_any():
                    pass

        await asyncio.gather(*(one() for _ in range(streams)))


async def bare_httpx(url: str, streams: int) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def one() -> None:
            async with http.stream("POST", url + PATH, json=OPTIONS) as reply:
                async for _ in reply.aiter_bytes():
                    pass

        await asyncio.gather(*(one() for _ in range(streams)))


async def typed(url: str, streams: int) -> None:
    async with AsyncDualPathClient(url) as client:

        async def one() -> None:
            async for _ in client.stream("s", **OPTIONS):
                pass

        await asyncio.gather(*(one() for _ in range(streams)))


async def replayed(url: str, streams: int) -> None:
    async with AsyncDualPathClient(url) as client:
        router = Router(client)
        await asyncio.gather(*(router.turn("s", OPTIONS) for _ in range(streams)))


async def plain(url: str, streams: int) -> None:
    def work() -> None:
        with DualPathClient(url) as client:
            for _ in range(streams):
                for _ in client.stream("s", **OPTIONS):
                    pass

    work()


ARMS: dict[str, Callable[[str, int], Awaitable[None]]] = {
    "aiohttp": bare_aiohttp,
    "httpx": bare_httpx,
    "async": typed,
    "replay": replayed,
    "sync": plain,
}


@contextlib.contextmanager
def stub_router(events: int, pause_s: float) -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        fork = multiprocessing.get_context("fork")
        server = fork.Process(target=serve, args=(sock, events, pause_s))
        server.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.terminate()
            server.join()


def measure(url: str, streams: int, events: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU for one event, by arm."""
    seen: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, run in ARMS.items():
            began = time.process_time()
            asyncio.run(_awaited(run(url, streams)))
            seen[arm].append((time.process_time() - began) * 1e6 / (streams * events))
    return {arm: round(statistics.median(times), 1) for arm, times in seen.items()}


async def _awaited(work: Awaitable[None]) -> None:
    await work


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_events")
    parser.add_argument("--streams", type=int, default=16, help="at once")
    parser.add_argument("--events", type=int, default=500, help="of one token, in each stream")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds after each event")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with stub_router(options.events, options.pause) as url:
        found = measure(url, options.streams, options.events, options.rounds)
    versions = {"python": platform.python_version(), "aiohttp": aiohttp.__version__}
    versions["httpx"] = httpx.__version__
    print(json.dumps({"us_per_event": found, "versions": versions, **vars(options)}, indent=1))


if __name__ == "__main__":
    main()
