"""Streams of engines: connections that serve again, limits that engines state, partial turns."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from router_world import eventually, failure, world
from stub_engines import StubEngine, formula

from agent_runtime.dispatch.health import context_length_of
from agent_runtime.owners import ANONYMOUS

DECODE: dict[str, object] = {
    "disaggregation_mode": "decode",
    "context_length": 32768,
    "max_req_input_len": 16378,
    "max_total_num_tokens": 16384,
    "num_reserved_decode_tokens": 512,
    "page_size": 16,
}
"""Of the default test model's decode engine."""


class Counting(StubEngine):
    """Stub that remembers on which connection each turn came."""

    def __init__(self) -> None:
        super().__init__("e", "plain")
        self.connections: set[object] = set()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        return await super()._generate(request)


async def test_turns_one_after_the_other_use_one_connection() -> None:
    async with world(engine := Counting(), health_interval_s=60.0) as w:
        sid = await w.session()
        for token in range(5):
            await w.done(sid, token_ids=[token], max_new_tokens=3)
        assert len(engine.connections) == 1


@pytest.mark.parametrize("after", [0, 1])
async def test_partial_means_tokens_were_sent(after: int) -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "cut", after
        reply = await w.turn(sid, token_ids=[1, 2], max_new_tokens=4, keep_partial=True)
        assert failure(reply)["type"] == "engine_failure"
        kept = [1, 2, *formula([1, 2], 4)[:1]] if after else []
        assert await w.history(sid) == kept
        await w.idle()


async def test_a_router_that_stops_keeps_the_partial_turn() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 2
        body: dict[str, Any] = {"token_ids": [1, 2], "max_new_tokens": 4, "keep_partial": True}
        async with w.streaming(sid, **body) as events:
            seen = [await anext(events) for _ in range(3)]
            assert [name for name, _ in seen] == ["turn.started", "tokens", "tokens"]
            session = await w.router.sessions.get(ANONYMOUS, sid)  # type: ignore[arg-type]
            await session.end()
        assert (session.turns, session.busy) == (1, False)
        assert await w.history(sid) == [1, 2, *formula([1, 2], 4)[:2]]
        await eventually(lambda: w.prefill.running == w.decode.running == 0)


@pytest.mark.parametrize(
    ("info", "most"),
    [
        ({}, None),
        ({"context_length": 4096}, 4096),
        ({"context_length": 32768, "max_req_input_len": 16378}, 16378),
        ({"context_length": "many", "max_req_input_len": 0}, None),
        (DECODE, 16384 - 512 - 16),
        (DECODE | {"disaggregation_mode": "prefill"}, 16378),
        (DECODE | {"context_length": 4096}, 4096),
    ],
)
def test_the_smaller_of_context_and_pool_bounds_a_turn(
    info: dict[str, object], most: int | None
) -> None:
    assert context_length_of(info) == most


async def test_a_configured_context_does_not_exceed_an_engines() -> None:
    engine = StubEngine("e", "plain", context_length=8)
    async with world(engine, context_length=100) as w:
        sid = await w.session()
        reply = await w.turn(sid, token_ids=[1, 2, 3], max_new_tokens=6)
        assert failure(reply)["type"] == "context_overflow"
        await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=5)
