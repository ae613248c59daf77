"""Deadlines, saturation, waiting for engines, the cap on sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_world import Event, World, eventually, failure, served, world
from stub_engines import StubEngine, formula

from agent_runtime.config import EngineEndpoint, RouterConfig
from dualpath_sglang.contract.render import Reply, Request

BODY: dict[str, Any] = {"token_ids": [1, 2, 3], "max_new_tokens": 4}
SHORT_S = 0.15


async def told_and_idle(w: World) -> None:
    await eventually(lambda: all(engine.aborted for engine in w.engines))
    await w.idle()


async def test_a_deadline_while_the_engines_are_silent() -> None:
    async with world() as w:
        sid = await w.session()
        w.prefill.fault = "hang"
        reply = await w.turn(sid, deadline_s=SHORT_S, **BODY)
        assert (reply.status_code, failure(reply)["type"]) == (504, "deadline_exceeded")
        words = "within 0.15 s: after 0 tokens on prefill engine 'p0' and decode engine 'd0'"
        assert words in failure(reply)["message"]
        await told_and_idle(w)
        assert await w.history(sid) == []


@pytest.mark.parametrize("keep_partial", [False, True])
async def test_a_deadline_while_tokens_come(keep_partial: bool) -> None:
    async with world(turn_deadline_s=SHORT_S) as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 2
        events = await w.events(sid, keep_partial=keep_partial, **BODY)
        assert [name for name, _ in events] == ["turn.started", "tokens", "tokens", "error"]
        error = events[-1][1]["error"]
        assert error["type"] == "deadline_exceeded"
        assert "after 2 tokens" in error["message"]
        await eventually(lambda: w.decode.aborted)
        await w.idle()
        kept = [1, 2, 3, *formula([1, 2, 3], 4)[:2]] if keep_partial else []
        assert await w.history(sid) == kept


async def test_a_turns_own_deadline_wins() -> None:
    async with world(turn_deadline_s=0.001) as w:
        await w.done(await w.session(), deadline_s=30.0, **BODY)


async def test_a_deadline_while_the_turn_waits_for_a_place() -> None:
    async with world(max_inflight=1) as w:
        w.decode.fault = "hang"
        first = asyncio.create_task(w.turn(await w.session(), **BODY))
        await eventually(lambda: w.router.loop.inflight)
        reply = await w.turn(await w.session(), deadline_s=SHORT_S, **BODY)
        assert reply.status_code == 504
        assert "while it waited for a placement" in failure(reply)["message"]
        assert w.router.loop.waiting == 0
        w.decode.go.set()
        assert (await first).status_code == 200
        assert len(w.decode.bodies) == 1


class SilentRenderer:
    """Stub that never answers."""

    async def ask(self, request: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        return None


async def test_a_deadline_while_the_renderer_is_silent() -> None:
    async with world() as w:
        sid = await w.session()
        w.router.pipeline._renderer = SilentRenderer()
        reply = await w.turn(sid, text="hello", deadline_s=SHORT_S)
        assert reply.status_code == 504
        assert "while the renderer made its tokens" in failure(reply)["message"]
        session = (await w.http.get(f"/v1/sessions/{sid}")).json()
        assert (session["busy"], session["turns"]) == (False, 0)


async def test_more_turns_than_may_wait_are_answered_503() -> None:
    async with world(max_inflight=1, max_waiting=1) as w:
        w.decode.fault = "hang"
        turns = []
        for full in (lambda: w.router.loop.inflight == 1, lambda: w.router.loop.waiting == 1):
            turns.append(asyncio.create_task(w.turn(await w.session(), **BODY)))
            await eventually(full)
        for stream in (False, True):
            reply = await w.turn(await w.session(), stream=stream, **BODY)
            assert (reply.status_code, failure(reply)["type"]) == (503, "saturated")
            assert reply.headers["retry-after"] == "1"
            assert "max_inflight=1 and max_waiting=1" in failure(reply)["message"]
        w.decode.fault = ""
        w.decode.go.set()
        assert [(await turn).status_code for turn in turns] == [200, 200]
        await w.idle()


async def test_a_turn_waits_for_an_engine_that_comes_back() -> None:
    async with world(no_engine_wait_s=5.0, health_interval_s=0.02, health_failures=1) as w:
        w.decode.healthy = False
        await eventually(w.router.loop.missing_roles)
        turn = asyncio.create_task(w.turn(await w.session(), **BODY))
        await eventually(lambda: w.router.loop.waiting)
        w.decode.healthy = True
        assert (await turn).status_code == 200


async def test_a_turn_waits_only_so_long_for_an_engine() -> None:
    nobody = "http://127.0.0.1:1"
    engines = (EngineEndpoint("p", "prefill", nobody), EngineEndpoint("d", "decode", nobody))
    config = RouterConfig(engines=engines, no_engine_wait_s=0.1, health_interval_s=0.02)
    async with served(config) as w:
        reply = await w.turn(await w.session(), **BODY)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert "no healthy prefill engine (1 configured)" in failure(reply)["message"]
        assert w.router.loop.waiting == 0


async def test_a_fleet_without_engines() -> None:
    async with served(RouterConfig(no_engine_wait_s=0.1)) as w:
        reply = await w.turn(await w.session(), **BODY)
        assert reply.status_code == 503
        assert "(0 configured)" in failure(reply)["message"]


async def test_the_cap_on_sessions() -> None:
    async with world(max_sessions=2) as w:
        first = await w.session()
        await w.session()
        reply = await w.http.post("/v1/sessions", json={})
        assert (reply.status_code, failure(reply)["type"]) == (503, "saturated")
        assert "max_sessions=2: delete some" in failure(reply)["message"]
        await w.http.delete(f"/v1/sessions/{first}")
        await w.session()


async def test_a_reader_that_is_slow_slows_the_engine() -> None:
    """Events wait in a bounded queue; nothing is lost when the client reads on."""
    engine = StubEngine("one", incremental=True)
    async with world(engine) as w:
        got: list[Event] = []
        body: dict[str, Any] = {"token_ids": [1], "max_new_tokens": 900}
        async with w.streaming(await w.session(), **body) as events:
            async for event in events:
                got.append(event)
                if len(got) % 100 == 1:
                    await asyncio.sleep(0.01)
        tokens = [token for name, data in got if name == "tokens" for token in data["token_ids"]]
        assert tokens == formula([1], 900) == got[-1][1]["token_ids"]
