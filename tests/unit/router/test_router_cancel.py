"""Clients that go away, sessions that are deleted: the turn ends on both engines."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from router_world import World, eventually, failure, world
from stub_engines import formula

from agent_runtime.owners import ANONYMOUS
from dualpath_sglang.contract.ids import SessionId

BODY: dict[str, Any] = {"token_ids": [1, 2, 3], "max_new_tokens": 6}
OUTPUT = formula(BODY["token_ids"], 6)


async def cancelled_everywhere(w: World) -> None:
    """Both engines were told and lost the connection; the router counts nothing."""
    rid = w.decode.body["rid"]
    for engine in w.engines:
        await eventually(partial(engine.is_done_with, rid))
    await w.idle()


async def test_a_client_that_goes_in_mid_stream() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 2
        async with w.streaming(sid, **BODY) as events:
            seen = [(await anext(events))[0] for _ in range(3)]
            assert seen == ["turn.started", "tokens", "tokens"]
            assert (await w.http.get(f"/v1/sessions/{sid}")).json()["busy"] is True
        await cancelled_everywhere(w)
        assert w.decode.dropped == [w.decode.body["rid"]]
        assert await w.history(sid) == []


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_that_goes_before_the_first_token(role: str) -> None:
    async with world() as w:
        sid = await w.session()
        hanging = w.prefill if role == "prefill" else w.decode
        hanging.fault = "hang"
        async with w.streaming(sid, **BODY) as events:
            assert (await anext(events))[0] == "turn.started"
            await eventually(lambda: w.prefill.bodies and w.decode.bodies)
        await cancelled_everywhere(w)


async def test_a_client_that_goes_while_it_waits_for_json() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 3
        task = asyncio.create_task(w.turn(sid, **BODY))
        await eventually(lambda: w.prefill.bodies and w.decode.running)
        task.cancel()
        await cancelled_everywhere(w)
        w.decode.fault = ""
        done = await w.done(sid, **BODY)
        assert (done["turn"], done["token_ids"]) == (0, OUTPUT)


async def test_a_client_that_goes_while_it_sends_its_body(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        sid = await w.session()
        _, writer = await asyncio.open_connection("127.0.0.1", w.http.base_url.port)
        head = f"POST /v1/sessions/{sid}/turns HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        writer.write(head.encode() + b'{"token_ids"')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await w.done(sid, **BODY)
        assert len(w.decode.bodies) == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_keep_partial_keeps_what_was_sent() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 2
        async with w.streaming(sid, keep_partial=True, **BODY) as events:
            for _ in range(3):
                await anext(events)
        await cancelled_everywhere(w)
        session = await w.router.sessions.get(ANONYMOUS, SessionId(sid))
        await eventually(lambda: not session.busy)
        assert await w.history(sid) == [1, 2, 3, *OUTPUT[:2]]
        w.decode.fault = ""
        await w.done(sid, token_ids=[4], if_turn=1, max_new_tokens=1)
        assert w.decode.body["input_ids"] == [1, 2, 3, *OUTPUT[:2], 4]


async def test_keep_partial_of_a_turn_whose_engine_failed() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "event", 4
        events = await w.events(sid, keep_partial=True, **BODY)
        assert events[-1][0] == "error"
        await w.idle()
        assert await w.history(sid) == [1, 2, 3, *OUTPUT[:4]]


async def test_a_turn_on_a_busy_session() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault = "hang"
        first = asyncio.create_task(w.turn(sid, **BODY))
        await eventually(lambda: w.decode.running)
        for stream in (False, True):
            reply = await w.turn(sid, stream=stream, token_ids=[9])
            assert (reply.status_code, failure(reply)["type"]) == (409, "conflict")
            assert "busy with turn 0" in failure(reply)["message"]
        w.decode.go.set()
        assert (await first).json()["token_ids"] == OUTPUT
        assert len(w.decode.bodies) == 1


@pytest.mark.parametrize("keep_partial", [False, True])
async def test_a_session_deleted_during_a_streamed_turn(keep_partial: bool) -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 1
        async with w.streaming(sid, keep_partial=keep_partial, **BODY) as events:
            await anext(events)
            await anext(events)
            assert (await w.http.delete(f"/v1/sessions/{sid}")).status_code == 204
            ((name, data),) = [event async for event in events]
        assert (name, data["error"]["type"]) == ("error", "conflict")
        assert "was deleted" in data["error"]["message"]
        await cancelled_everywhere(w)
        assert (await w.http.get(f"/v1/sessions/{sid}")).status_code == 404
        assert w.router.sessions.count == 0


async def test_a_session_deleted_during_a_turn_as_json() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault = "hang"
        turn = asyncio.create_task(w.turn(sid, **BODY))
        await eventually(lambda: w.decode.running)
        assert (await w.http.delete(f"/v1/sessions/{sid}")).status_code == 204
        reply = await turn
        assert (reply.status_code, failure(reply)["type"]) == (409, "conflict")
        await cancelled_everywhere(w)


async def test_a_session_deleted_twice_at_once() -> None:
    async with world() as w:
        sid = await w.session()
        path = f"/v1/sessions/{sid}"
        replies = await asyncio.gather(*(w.http.delete(path) for _ in "123"))
        assert {reply.status_code for reply in replies} <= {204, 404}
        assert w.router.sessions.count == 0


async def test_a_router_that_stops_ends_its_turns_on_the_engines() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 1
        async with w.streaming(sid, **BODY) as events:
            await anext(events)
            await anext(events)
            await w.router.sessions.close()
            assert (await anext(events))[0] == "error"
        await cancelled_everywhere(w)
