"""Turns that go well: exact history, the bodies that the engines see, what a client gets back."""

from __future__ import annotations

import re

import pytest
from router_world import failure, world
from stub_engines import BOOTSTRAP_PORT, StubEngine, formula


async def test_a_turn_as_json() -> None:
    async with world() as w:
        sid = await w.session()
        done = await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=4)
        assert done["token_ids"] == formula([1, 2, 3], 4)
        assert done["text"] == "".join(f"<{token}>" for token in done["token_ids"])
        assert (done["session_id"], done["turn"], done["replayed"]) == (sid, 0, False)
        assert (done["prompt_tokens"], done["history_tokens"]) == (3, 7)
        assert done["finish_reason"] == "length"
        assert (done["placement"]["prefill"], done["placement"]["decode"]) == ("p0", "d0")
        timing = done["timing"]
        assert 0 <= timing["queued_s"] <= timing["ttft_s"] <= timing["e2e_s"]
        await w.idle()
        assert w.prefill.aborted == w.decode.aborted == []
        assert w.prefill.dropped == w.decode.dropped == []


async def test_both_engines_get_the_same_body() -> None:
    async with world() as w:
        sid = await w.session()
        await w.done(sid, token_ids=[1, 2, 3], sampling={"temperature": 0.0, "max_new_tokens": 2})
        body = w.prefill.body
        assert body == w.decode.body
        assert body["input_ids"] == [1, 2, 3]
        assert body["sampling_params"] == {"temperature": 0.0, "max_new_tokens": 2}
        assert body["stream"] is True
        assert body["bootstrap_host"] == "127.0.0.1"
        assert body["bootstrap_port"] == BOOTSTRAP_PORT
        assert 0 <= body["bootstrap_room"] < 2**63


async def test_rooms_and_request_ids_are_fresh_and_the_clients_are_not_used() -> None:
    async with world() as w:
        sid = await w.session()
        for _ in range(3):
            headers = {"X-Request-Id": "mine"}
            reply = await w.http.post(
                f"/v1/sessions/{sid}/turns", json={"token_ids": [5]}, headers=headers
            )
            assert reply.headers["x-request-id"] != "mine"
        assert len({body["bootstrap_room"] for body in w.decode.bodies}) == 3
        ids = {body["rid"] for body in w.decode.bodies}
        assert len(ids) == 3
        assert all(re.fullmatch(r"[0-9a-f]{32}", rid) for rid in ids)


async def test_a_turn_as_a_stream() -> None:
    async with world() as w:
        sid = await w.session()
        events = await w.events(sid, token_ids=[9], max_new_tokens=3)
        names = [name for name, _ in events]
        assert names == ["turn.started", "tokens", "tokens", "tokens", "turn.done"]
        assert events[0][1] == {"turn": 0, "prompt_tokens": 1}
        streamed = [token for _, data in events[1:-1] for token in data["token_ids"]]
        assert streamed == events[-1][1]["token_ids"] == formula([9], 3)
        assert "".join(data["text"] for _, data in events[1:-1]) == events[-1][1]["text"]


@pytest.mark.parametrize("incremental", [True, False])
async def test_engines_may_stream_increments_or_all_so_far(incremental: bool) -> None:
    p, d = StubEngine("p", "prefill", incremental), StubEngine("d", "decode", incremental)
    async with world(p, d) as w:
        events = await w.events(await w.session(), token_ids=[4, 5], max_new_tokens=5)
        assert [len(data["token_ids"]) for name, data in events if name == "tokens"] == [1] * 5
        done = events[-1][1]
        assert done["token_ids"] == formula([4, 5], 5)
        assert done["text"] == "".join(f"<{token}>" for token in done["token_ids"])


async def test_the_history_is_exact_over_turns() -> None:
    async with world() as w:
        sid = await w.session()
        history: list[int] = []
        for turn, appended in enumerate(([1, 2], [3], [], [4, 5, 6])):
            done = await w.done(sid, token_ids=appended, max_new_tokens=3, if_turn=turn)
            assert w.prefill.body["input_ids"] == w.decode.body["input_ids"] == history + appended
            assert done["turn"] == turn
            history += appended + done["token_ids"]
            assert await w.history(sid) == history


async def test_keep_cuts_the_history_before_appending() -> None:
    async with world() as w:
        sid = await w.session()
        first = await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=4)
        full = [1, 2, 3, *first["token_ids"]]
        second = await w.done(sid, token_ids=[8], keep=5, max_new_tokens=1)
        assert w.decode.body["input_ids"] == [*full[:5], 8]
        assert await w.history(sid) == [*full[:5], 8, *second["token_ids"]]
        await w.done(sid, token_ids=[9], keep=0, max_new_tokens=1)
        assert w.decode.body["input_ids"] == [9]


async def test_each_engine_speaks_for_itself_in_the_usage() -> None:
    async with world() as w:
        done = await w.done(await w.session(), token_ids=list(range(20)), max_new_tokens=3)
    usage = done["usage"]
    tiers = {"device": 1, "host": 0, "storage": 4, "peer": 2}
    assert usage["prefill"] == {**tiers, "computed": 13}
    assert usage["decode"] == tiers
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 3)
    assert (usage["cached_tokens"], usage["computed_tokens"]) == (7, 13)
    assert usage["load"]["prefill"]["peer_bytes"] == 32
    assert usage["load"]["prefill"]["load_s"] == 0.5
    assert usage["load"]["decode"]["store_bytes"] == 64


async def test_without_the_plugin_only_prefill_has_tiers() -> None:
    engines = [StubEngine("p", "prefill", reports=False), StubEngine("d", "decode", reports=False)]
    async with world(*engines) as w:
        done = await w.done(await w.session(), token_ids=list(range(20)), max_new_tokens=3)
    usage = done["usage"]
    assert usage["prefill"] == {"device": 1, "host": 2, "storage": 0, "peer": 0, "computed": 17}
    assert usage["decode"] is None


async def test_a_plain_engine_does_both_halves() -> None:
    plain = StubEngine("one")
    async with world(plain) as w:
        done = await w.done(await w.session(), token_ids=[1, 2], max_new_tokens=2)
        assert done["placement"]["prefill"] == done["placement"]["decode"] == "one"
        assert len(plain.bodies) == 1
        assert not plain.body.keys() & {"bootstrap_host", "bootstrap_port", "bootstrap_room"}


async def test_turns_go_round_the_engines() -> None:
    names = [("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")]
    async with world(*(StubEngine(n, r) for n, r in names)) as w:  # type: ignore[arg-type]
        sid = await w.session()
        placed = [(await w.done(sid, token_ids=[1], max_new_tokens=1))["placement"] for _ in "123"]
        pairs = [(place["prefill"], place["decode"]) for place in placed]
        assert pairs == [("p0", "d0"), ("p1", "d1"), ("p0", "d0")]


async def test_sessions_are_created_shown_and_deleted() -> None:
    async with world() as w:
        sid = await w.session(session_id="mine", metadata={"trace": 1})
        assert sid == "mine"
        await w.done(sid, token_ids=[1], max_new_tokens=1)
        tree = (await w.http.get("/v1/sessions/mine")).json()
        assert tree.keys() == {
            "session_id", "created_at", "metadata", "turns", "history_tokens", "busy",
        }  # fmt: skip
        assert (tree["metadata"], tree["turns"], tree["history_tokens"]) == ({"trace": 1}, 1, 2)
        assert tree["busy"] is False
        again = await w.http.post("/v1/sessions", json={"session_id": "mine"})
        assert (again.status_code, failure(again)["type"]) == (409, "conflict")
        assert (await w.http.delete("/v1/sessions/mine")).status_code == 204
        assert (await w.http.get("/v1/sessions/mine")).status_code == 404
        assert await w.session(session_id="mine") == "mine"
        assert await w.history("mine") == []
