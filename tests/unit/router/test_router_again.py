"""The same turn again, stale writers, sessions after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from router_world import eventually, failure, served, world
from stub_engines import StubEngine, formula, pair_up, serving

from agent_runtime.config import RouterConfig

BODY: dict[str, Any] = {"token_ids": [1, 2, 3], "max_new_tokens": 3}


async def test_a_key_gives_the_same_turn_again() -> None:
    async with world() as w:
        sid = await w.session()
        first = await w.turn(sid, key="k1", **BODY)
        second = await w.turn(sid, key="k1", **BODY)
        assert second.status_code == 200
        assert second.json() == first.json() | {"replayed": True}
        assert len(w.decode.bodies) == 1
        assert await w.history(sid) == [1, 2, 3, *first.json()["token_ids"]]


async def test_a_stream_and_json_are_the_same_turn() -> None:
    async with world() as w:
        sid = await w.session()
        first = (await w.events(sid, key="k", **BODY))[-1][1]
        assert (await w.turn(sid, key="k", **BODY)).json() == first | {"replayed": True}
        again = await w.events(sid, key="k", **BODY)
        assert again[-1] == ("turn.done", first | {"replayed": True})
        assert len(w.decode.bodies) == 1


async def test_a_key_is_found_also_after_later_turns_and_with_another_if_turn() -> None:
    async with world() as w:
        sid = await w.session()
        first = await w.turn(sid, key="k", if_turn=0, **BODY)
        await w.done(sid, token_ids=[4], max_new_tokens=1)
        again = await w.turn(sid, key="k", if_turn=0, **BODY)
        assert again.json() == first.json() | {"replayed": True}
        assert len(await w.history(sid)) == 8


async def test_a_key_with_another_body_is_a_conflict() -> None:
    async with world() as w:
        sid = await w.session()
        await w.turn(sid, key="k", **BODY)
        reply = await w.turn(sid, key="k", token_ids=[9], max_new_tokens=3)
        assert (reply.status_code, failure(reply)["field"]) == (409, "Idempotency-Key")
        assert "was used for turn 0 with another body" in failure(reply)["message"]


async def test_keys_belong_to_their_session() -> None:
    async with world() as w:
        for _ in range(2):
            assert (await w.turn(await w.session(), key="k", **BODY)).json()["replayed"] is False
        assert len(w.decode.bodies) == 2


async def test_a_failed_turn_does_not_use_its_key_up() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault = "event"
        assert (await w.turn(sid, key="k", **BODY)).status_code == 502
        w.decode.fault = ""
        reply = await w.turn(sid, key="k", **BODY)
        assert (reply.status_code, reply.json()["replayed"]) == (200, False)


async def test_a_key_of_a_turn_under_way_is_busy_and_then_found() -> None:
    async with world() as w:
        sid = await w.session()
        w.decode.fault = "hang"
        first = asyncio.create_task(w.turn(sid, key="k", **BODY))
        await eventually(lambda: w.decode.running)
        assert (await w.turn(sid, key="k", **BODY)).status_code == 409
        w.decode.go.set()
        tree = (await first).json()
        assert (await w.turn(sid, key="k", **BODY)).json() == tree | {"replayed": True}


async def test_a_partial_turn_is_found_by_its_key() -> None:
    """It is in the history: sent once more it would be there twice."""
    async with world() as w:
        sid = await w.session()
        w.decode.fault, w.decode.after = "hang", 1
        async with w.streaming(sid, key="k", keep_partial=True, **BODY) as events:
            await anext(events)
            await anext(events)
        await w.idle()
        again = (await w.turn(sid, key="k", keep_partial=True, **BODY)).json()
        assert (again["finish_reason"], again["replayed"]) == ("partial", True)
        assert again["token_ids"] == formula([1, 2, 3], 3)[:1]


@pytest.mark.parametrize("stale", [0, 2])
async def test_a_stale_writer_is_refused(stale: int) -> None:
    async with world() as w:
        sid = await w.session()
        await w.done(sid, if_turn=0, **BODY)
        reply = await w.turn(sid, if_turn=stale, **BODY)
        assert (reply.status_code, failure(reply)["field"]) == (409, "if_turn")
        assert f"if_turn is {stale}, the session's next turn is 1" in failure(reply)["message"]
        await w.done(sid, if_turn=1, **BODY)


async def test_sessions_survive_a_restart(tmp_path: Path) -> None:
    p, d = StubEngine("p0", "prefill"), StubEngine("d0", "decode")
    pair_up([p, d])
    async with serving(p), serving(d):
        config = RouterConfig(
            engines=(p.endpoint(), d.endpoint()),
            database=str(tmp_path / "sessions.db"),
            health_interval_s=0.05,
        )
        async with served(config) as w:
            sid = await w.session(metadata={"who": "me"})
            gone = await w.session()
            await w.done(sid, **BODY)
            turn = await w.turn(sid, key="k", token_ids=[4, 5], keep=4, max_new_tokens=2)
            assert (await w.http.delete(f"/v1/sessions/{gone}")).status_code == 204
            before = (await w.http.get(f"/v1/sessions/{sid}?include=token_ids")).json()
        async with served(config) as w:
            after = (await w.http.get(f"/v1/sessions/{sid}?include=token_ids")).json()
            assert after == before
            assert after["metadata"] == {"who": "me"}
            again = await w.turn(sid, key="k", token_ids=[4, 5], keep=4, max_new_tokens=2)
            assert again.json() == turn.json() | {"replayed": True}
            done = await w.done(sid, token_ids=[6], if_turn=2, max_new_tokens=1)
            assert d.body["input_ids"] == [*before["token_ids"], 6]
            assert done["turn"] == 2
            assert (await w.http.get(f"/v1/sessions/{gone}")).status_code == 404
            assert w.router.sessions.count == 1


async def test_sessions_that_left_memory_are_read_again(tmp_path: Path) -> None:
    async with world(database=str(tmp_path / "db"), loaded_sessions=2) as w:
        sids = [await w.session() for _ in range(5)]
        for _ in range(2):
            for sid in sids:
                await w.done(sid, token_ids=[1], max_new_tokens=2)
        for sid in sids:
            history = await w.history(sid)
            first = [1, *formula([1], 2)]
            assert history == [*first, 1, *formula([*first, 1], 2)]
