"""Engines that fail: one clear error, both engines told, nothing left, the session as it was."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from router_world import World, eventually, failure, world
from stub_engines import Fault, StubEngine, formula

BODY: dict[str, Any] = {"token_ids": [1, 2, 3], "max_new_tokens": 6}
FAULTS: list[tuple[Fault, str]] = [
    ("status", "failed (500): stub says 500"),
    ("event", "failed (500): stub's error event"),
    ("abort", "failed (503): stub aborts"),
    ("cut", "is gone"),
    ("end", "the stream ended before the turn was done"),
    ("nonsense", "an event it sent makes no sense"),
]


def faulty(w: World, role: str) -> StubEngine:
    return w.prefill if role == "prefill" else w.decode


async def nothing_left(w: World, sid: str, history: list[int]) -> None:
    """The engines know that the turn is over, and the next turn works."""
    await w.idle()
    rid = w.prefill.body["rid"]
    for engine in w.engines:
        await eventually(partial(engine.is_done_with, rid))
        engine.fault = ""
    assert await w.history(sid) == history
    await eventually(lambda: not w.router.loop.missing_roles())
    done = await w.done(sid, token_ids=[7], max_new_tokens=1)
    assert w.decode.body["input_ids"] == [*history, 7]
    assert done["turn"] == (1 if history else 0)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(("fault", "words"), FAULTS)
async def test_a_turn_as_json_fails_with_502(role: str, fault: Fault, words: str) -> None:
    async with world() as w:
        sid = await w.session()
        faulty(w, role).fault = fault
        reply = await w.turn(sid, **BODY)
        error = failure(reply)
        assert (reply.status_code, error["type"]) == (502, "engine_failure")
        assert f"{role} engine '{role[0]}0'" in error["message"]
        assert words in error["message"]
        await nothing_left(w, sid, [])


@pytest.mark.parametrize(("fault", "words"), FAULTS)
async def test_a_stream_ends_with_an_error_event(fault: Fault, words: str) -> None:
    after = 0 if fault == "status" else 2
    async with world() as w:
        sid = await w.session()
        first = await w.done(sid, token_ids=[5], max_new_tokens=2)
        history = [5, *first["token_ids"]]
        w.decode.fault, w.decode.after = fault, after
        events = await w.events(sid, **BODY)
        assert [name for name, _ in events] == ["turn.started", *["tokens"] * after, "error"]
        streamed = [token for _, data in events[1:-1] for token in data["token_ids"]]
        assert streamed == formula([*history, 1, 2, 3], 6)[:after]
        error = events[-1][1]["error"]
        assert error.keys() == {"type", "message", "field", "request_id"}
        assert error["type"] == "engine_failure"
        assert words in error["message"]
        await nothing_left(w, sid, history)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_request_that_an_engine_refuses_is_the_clients_to_fix(role: str) -> None:
    async with world() as w:
        sid = await w.session()
        faulty(w, role).fault = "refuse"
        reply = await w.turn(sid, **BODY)
        assert (reply.status_code, failure(reply)["type"]) == (400, "bad_request")
        assert f"{role} engine '{role[0]}0' refused the request" in failure(reply)["message"]
        await nothing_left(w, sid, [])


async def test_a_plain_engine_that_fails() -> None:
    plain = StubEngine("one", fault="abort", after=1)
    async with world(plain) as w:
        sid = await w.session()
        reply = await w.turn(sid, **BODY)
        assert failure(reply)["type"] == "engine_failure"
        await w.idle()
        assert await w.history(sid) == []


async def test_an_engine_that_is_gone_is_not_used_until_it_is_back() -> None:
    """Its port is closed while a turn runs there: the turn fails, the next ones wait or go on."""
    names = [("p0", "prefill"), ("d0", "decode"), ("d1", "decode")]
    async with world(*(StubEngine(n, r) for n, r in names)) as w:  # type: ignore[arg-type]
        sid = await w.session()
        w.router.loop.report_health(list(w.router.loop.engines)[1], False, "test")
        states = w.router.loop.engines
        assert [state.healthy for state in states.values()] == [True, False, True]
        done = await w.done(sid, token_ids=[1], max_new_tokens=1)
        assert done["placement"]["decode"] == "d1"
        await eventually(lambda: all(state.healthy for state in states.values()))


async def test_a_refused_connection_marks_the_engine_at_once() -> None:
    async with world(health_interval_s=60.0) as w:
        sid = await w.session()
        client = next(c for c in w.router.engines.clients.values() if c.endpoint.role == "decode")
        client._url = "http://127.0.0.1:1"  # nobody listens there
        reply = await w.turn(sid, **BODY)
        assert reply.status_code == 502
        assert "decode engine 'd0' at http://127.0.0.1:1 is gone" in failure(reply)["message"]
        ready = await w.http.get("/ready")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["decode"])
        await eventually(lambda: w.prefill.aborted and w.prefill.running == 0)
        refused = await w.turn(sid, **BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "no healthy decode engine (1 configured)" in failure(refused)["message"]


async def test_an_engine_that_says_it_is_ill_gets_its_chances() -> None:
    async with world(health_interval_s=0.02, health_failures=3) as w:
        w.prefill.healthy = False
        await eventually(lambda: w.router.loop.missing_roles() == ("prefill",))
        state = next(s for s in w.router.loop.engines.values() if s.endpoint.role == "prefill")
        assert "/health says 503" in state.detail
        w.prefill.healthy = True
        await eventually(lambda: not w.router.loop.missing_roles())


@pytest.mark.parametrize("works", [False, True])
async def test_a_turn_ends_with_an_engine_that_stands_still(works: bool) -> None:
    """And not with one that is busy for long: its scheduler still answers."""
    async with world(health_interval_s=0.02, health_failures=2) as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 1
        async with w.streaming(sid, **BODY) as events:
            assert [(await anext(events))[0] for _ in "12"] == ["turn.started", "tokens"]
            w.decode.works, w.decode.healthy = works, False
            await eventually(lambda: w.router.loop.missing_roles() == ("decode",))
            if works:
                w.decode.fault = ""
                w.decode.go.set()
            rest = [event async for event in events]
        if works:
            assert rest[-1][1]["token_ids"] == formula([1, 2, 3], 6)
        else:
            assert rest[-1][1]["error"]["type"] == "engine_failure"
            assert "/health says 503" in rest[-1][1]["error"]["message"]
            assert await w.history(sid) == []
        w.decode.works = w.decode.healthy = True
        w.decode.fault = ""
        await eventually(lambda: not w.router.loop.missing_roles())
        assert (await w.done(sid, **BODY))["token_ids"]


async def test_one_turn_that_fails_leaves_the_others_alone() -> None:
    async with world() as w:
        first, second = await w.session(), await w.session()
        w.decode.fault, w.decode.after = "hang", 1
        async with w.streaming(first, **BODY) as events:
            assert [(await anext(events))[0] for _ in "12"] == ["turn.started", "tokens"]
            w.decode.fault = "event"
            assert (await w.turn(second, **BODY)).status_code == 502
            w.decode.fault = ""
            w.decode.go.set()
            rest = [event async for event in events]
        assert rest[-1][1]["token_ids"] == formula([1, 2, 3], 6)


async def test_a_policy_that_fails_costs_no_turn_and_no_session() -> None:
    def broken(*args: Any) -> list[Any]:
        raise ZeroDivisionError("a defect")

    async with world() as w:
        sid = await w.session()
        w.router.loop._policy = broken
        for turn in range(3):
            assert (await w.done(sid, if_turn=turn, **BODY))["turn"] == turn
        await w.idle()
        assert w.router.loop.policy_failures >= 3
        text = (await w.http.get("/metrics")).text
        assert f"policy_failures_total {w.router.loop.policy_failures}" in text
