"""The Python client against the real router, and against servers that make no sense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from router_world import World, eventually, leaves, world
from stub_engines import StubEngine, formula

from agent_runtime.client import (
    AsyncDualPathClient,
    DualPathClient,
    NewTokens,
    TurnDone,
    TurnStarted,
)
from agent_runtime.client_wire import Events, _Failure, _failure
from agent_runtime.trajectory.model import Tiers
from dualpath_sglang.contract import errors
from dualpath_sglang.contract.errors import DualPathError, RouterFailure

OUTPUT = formula([1, 2], 3)


@asynccontextmanager
async def using(*engines: StubEngine, **settings: Any) -> AsyncIterator[tuple[World, Any]]:
    async with world(*engines, **settings) as w, AsyncDualPathClient(w.url) as client:
        yield w, client


async def test_a_session_from_begin_to_end() -> None:
    async with using() as (_, client):
        assert await client.ready() is True
        made = await client.create(metadata={"agent": 7})
        assert (made.turns, made.history_tokens, made.busy) == (0, 0, False)
        done = await client.turn(made.session_id, token_ids=[1, 2], max_new_tokens=3)
        assert (done.turn, done.token_ids, done.finish_reason) == (0, OUTPUT, "length")
        assert done.usage.prefill == Tiers(device=1, storage=4, peer=2)
        assert done.usage.load["prefill"]["load_s"] == 0.5
        assert (done.placement.prefill, done.placement.decode) == ("p0", "d0")
        assert done.timing.e2e_s > 0
        assert await client.history(made.session_id) == [1, 2, *OUTPUT]
        shown = await client.session(made.session_id)
        assert (shown.turns, shown.history_tokens, shown.metadata) == (1, 5, {"agent": 7})
        assert await client.flush() == ["p0", "d0"]
        await client.delete(made.session_id)
        with pytest.raises(errors.NotFound, match="there is no session"):
            await client.session(made.session_id)


async def test_the_plain_client_does_the_same() -> None:
    def work(url: str) -> None:
        with DualPathClient(url) as client:
            assert client.ready()
            sid = client.create("s:1").session_id
            events = list(client.stream(sid, token_ids=[1, 2], max_new_tokens=3))
            assert isinstance(events[-1], TurnDone)
            again = client.turn(
                sid, token_ids=[9], max_new_tokens=1, if_turn=1, idempotency_key="k"
            )
            same = client.turn(sid, token_ids=[9], max_new_tokens=1, if_turn=1, idempotency_key="k")
            assert (again.replayed, same.replayed) == (False, True)
            assert same.token_ids == again.token_ids
            assert client.history(sid) == [1, 2, *events[-1].token_ids, 9, *again.token_ids]
            assert client.session(sid).turns == 2
            assert client.flush() == ["p0", "d0"]
            with pytest.raises(errors.Conflict):
                client.create("s:1")
            with pytest.raises(errors.BadRequest):
                list(client.stream(sid, token_ids=[-1]))
            client.delete(sid)

    async with world() as w:
        await asyncio.to_thread(work, w.url)


async def test_a_stream_is_typed_events() -> None:
    async with using() as (_, client):
        sid = (await client.create()).session_id
        events = [e async for e in client.stream(sid, token_ids=[1, 2], max_new_tokens=3)]
        assert events[0] == TurnStarted(0, 2)
        assert [e.token_ids for e in events[1:-1]] == [[token] for token in OUTPUT]
        assert all(isinstance(e, NewTokens) for e in events[1:-1])
        assert events[-1].token_ids == OUTPUT


class Separators(StubEngine):
    """Stub whose text has what some call the end of a line."""

    def word(self, token: int) -> str:
        return f"{token}\u2028\x85\r\n\n"


async def test_text_may_hold_any_line_separator() -> None:
    async with using(Separators("one")) as (_, client):
        sid = (await client.create()).session_id
        events = [e async for e in client.stream(sid, token_ids=[1, 2], max_new_tokens=3)]
        text = "".join(f"{token}\u2028\x85\r\n\n" for token in OUTPUT)
        assert events[-1].text == text == "".join(e.text for e in events[1:-1])


async def test_leaving_a_stream_cancels_the_turn() -> None:
    async with using() as (w, client):
        sid = (await client.create()).session_id
        w.decode.fault, w.decode.after = "hang", 1
        async with aclosing(client.stream(sid, token_ids=[1, 2], max_new_tokens=3)) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    break
        await eventually(lambda: w.decode.aborted)
        await w.idle()
        assert await client.history(sid) == []


async def test_errors_are_those_of_the_router() -> None:
    async with using(max_sessions=1) as (w, client):
        sid = (await client.create()).session_id
        with pytest.raises(errors.BadRequest) as bad:
            await client.turn(sid, token_ids=[1], max_new_tokens=-1)
        assert (bad.value.field, bad.value.http_status) == ("max_new_tokens", 400)
        assert bad.value.__notes__[0].startswith("request r-")
        with pytest.raises(errors.Saturated) as full:
            await client.create()
        assert (full.value.http_status, full.value.retry_after_s) == (503, 1.0)
        with pytest.raises(errors.RendererFailure, match="send token_ids"):
            await client.turn(sid, text="x")
        with pytest.raises(errors.Conflict, match="if_turn is 9"):
            await client.turn(sid, token_ids=[1], if_turn=9)
        w.decode.fault, w.decode.after = "event", 1
        events = client.stream(sid, token_ids=[1, 2], max_new_tokens=3)
        assert [type(await anext(events)) for _ in "12"] == [TurnStarted, NewTokens]
        with pytest.raises(errors.EngineFailure, match="stub's error event") as failed:
            await anext(events)
        assert failed.value.http_status == 502
        with pytest.raises(errors.EngineFailure):
            await client.turn(sid, token_ids=[1, 2], max_new_tokens=3)


def test_every_leaf_comes_back_as_itself() -> None:
    for kind in leaves():
        made = _failure(_Failure(kind.kind, "why", "f", "r"), DualPathError)
        assert type(made) is kind
        assert (made.message, made.field, made.http_status) == ("why", "f", kind.http_status)


async def test_not_ready_is_no_error() -> None:
    async with using(health_interval_s=0.02, health_failures=1) as (w, client):
        w.decode.healthy = False
        await eventually(w.router.loop.missing_roles)
        assert await client.ready() is False


@asynccontextmanager
async def answering(status: int, body: bytes) -> AsyncIterator[str]:
    """Stub of something that is no router."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (502, b"<h1>Bad gateway</h1>", RouterFailure, "HTTP 502: <h1>Bad gateway"),
        (401, b"who are you", errors.ClientError, "HTTP 401: who are you"),
        (403, b'{"error": "no"}', errors.ClientError, "HTTP 403"),
        (404, b'{"error": {"type": "brand_new", "message": "m"}}', errors.ClientError, "m"),
        (200, b"[]", RouterFailure, "makes no sense"),
        (200, b"<html>", RouterFailure, "makes no sense"),
        (200, b"", RouterFailure, "makes no sense"),
    ],
)
async def test_answers_that_no_router_gives(
    status: int, body: bytes, kind: type[DualPathError], words: str
) -> None:
    async with answering(status, body) as url, AsyncDualPathClient(url) as client:
        with pytest.raises(kind, match=words):
            await client.turn("s", token_ids=[1])


async def test_a_stream_that_breaks_off() -> None:
    begun = b'event: turn.started\ndata: {"turn": 0, "prompt_tokens": 1}\n\n'
    for body, words in (
        (begun, "ended before"),
        (b"", "ended before"),
        (b"event: tokens\ndata: x\n\n", "no sense"),
    ):
        async with answering(200, body) as url, AsyncDualPathClient(url) as client:
            with pytest.raises(RouterFailure, match=words):
                [event async for event in client.stream("s", token_ids=[1])]


async def test_nobody_there_and_no_answer_in_time() -> None:
    async with AsyncDualPathClient("http://127.0.0.1:1") as client:
        with pytest.raises(RouterFailure, match=r"http://127\.0\.0\.1:1: ClientConnectorError"):
            await client.create()
    async with world() as w, AsyncDualPathClient(w.url, timeout=0.1) as client:
        w.decode.fault = "hang"
        sid = (await client.create()).session_id
        with pytest.raises(RouterFailure, match="no answer in time"):
            await client.turn(sid, token_ids=[1])
        await w.idle()


async def test_what_json_does_not_have_is_the_callers_error() -> None:
    async with using() as (_, client):
        sid = (await client.create()).session_id
        with pytest.raises(ValueError, match="not JSON compliant"):
            await client.turn(sid, token_ids=[1], sampling={"temperature": float("nan")})
        with pytest.raises(errors.NotFound):
            await client.session("a/../b?c#d")


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_events_may_be_cut_anywhere(size: int) -> None:
    raw = 'event: tokens\ndata: {"token_ids": [1], "text": "é\u2028"}\n\n'.encode() * 3
    events = Events()
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    seen = [event for chunk in chunks for event in events.feed(chunk)]
    assert seen == [NewTokens([1], "é\u2028")] * 3
