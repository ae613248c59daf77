"""Health, readiness, engines, flushing, the OpenAPI document."""

from __future__ import annotations

import json

from router_world import eventually, failure, world
from stub_engines import StubEngine

from agent_runtime.http.schemas import TurnBody
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.pages import KeyLayout


async def test_health_is_the_routers_own_and_ready_is_the_fleets() -> None:
    async with world(health_interval_s=0.02, health_failures=1) as w:
        ready = await w.http.get("/ready")
        expected = {"ready": True, "missing": [], "why": ""}
        assert (ready.status_code, ready.json()) == (200, expected)
        w.decode.healthy = w.prefill.healthy = False
        await eventually(lambda: len(w.router.loop.missing_roles()) == 2)
        ready = await w.http.get("/ready")
        assert ready.status_code == 503
        why = "no healthy prefill engine (1 configured)"
        assert ready.json() == {"ready": False, "missing": ["prefill", "decode"], "why": why}
        health = await w.http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})


async def test_engines_are_listed_as_they_are() -> None:
    engines = [StubEngine("p0", "prefill", context_length=64), StubEngine("d0", "decode")]
    async with world(*engines) as w:
        tree = (await w.http.get("/admin/engines")).json()
        assert tree["inflight"] == 0
        assert [(e["name"], e["role"], e["url"]) for e in tree["engines"]] == [
            (engine.name, engine.role, engine.url) for engine in engines
        ]
        assert [e["context_length"] for e in tree["engines"]] == [64, None]
        assert all(e["healthy"] and e["inflight"] == 0 for e in tree["engines"])


async def test_an_engine_that_was_away_is_asked_again_what_it_is() -> None:
    layout = KeyLayout("m_", ("_0_k", "_0_v"), 16, 1)
    info = EngineInfo("decode", "0.5.23", 16, 1, "f", "n", (), (), layout).to_tree()
    async with world(health_interval_s=0.02, health_failures=1) as w:
        (_, d0) = w.router.loop.engines.values()
        w.decode.context_length, w.decode.info, w.decode.healthy = 32, info, False
        await eventually(lambda: not d0.healthy)
        assert d0.info is None
        w.decode.healthy = True
        await eventually(lambda: d0.healthy)
        (_, tree) = (await w.http.get("/admin/engines")).json()["engines"]
        assert (tree["context_length"], tree["info"]) == (32, info)


async def test_an_info_that_nobody_understands_leaves_the_context() -> None:
    decode = StubEngine("d0", "decode", context_length=32, info={"v": 99})
    async with world(StubEngine("p0", "prefill"), decode) as w:
        (_, tree) = (await w.http.get("/admin/engines")).json()["engines"]
        assert (tree["healthy"], tree["context_length"], tree["info"]) == (True, 32, None)


async def test_turns_under_way_are_counted_on_their_engines() -> None:
    async with world() as w:
        w.decode.fault = "hang"
        async with w.streaming(await w.session(), token_ids=[1]) as events:
            await anext(events)
            tree = (await w.http.get("/admin/engines")).json()
            assert tree["inflight"] == 1
            assert [e["inflight"] for e in tree["engines"]] == [1, 1]
        await w.idle()


async def test_flush_empties_every_engine() -> None:
    async with world() as w:
        reply = await w.http.post("/admin/flush_cache")
        assert (reply.status_code, reply.json()) == (200, {"flushed": ["p0", "d0"]})
        assert [e.flushed for e in w.engines] == [1, 1]


async def test_an_engine_that_refuses_to_flush_is_named() -> None:
    async with world() as w:
        w.prefill.flushes = False
        reply = await w.http.post("/admin/flush_cache")
        assert (reply.status_code, failure(reply)["type"]) == (502, "engine_failure")
        assert "prefill engine 'p0': flush_cache says 400" in failure(reply)["message"]
        assert w.decode.flushed == 1


async def test_the_model_has_a_name() -> None:
    async with world(model_name="tiny") as w:
        tree = (await w.http.get("/v1/models")).json()
        assert [card["id"] for card in tree["data"]] == ["tiny"]


async def test_every_answer_has_a_request_id() -> None:
    async with world() as w:
        ids = [(await w.http.get("/health")).headers["x-request-id"] for _ in "123"]
        assert len(set(ids)) == 3
        sid = await w.session()
        async with w.http.stream(
            "POST", f"/v1/sessions/{sid}/turns", json={"token_ids": [1], "stream": True}
        ) as reply:
            assert reply.headers["x-request-id"].startswith("r-")


async def test_the_openapi_document_shows_the_bodies() -> None:
    async with world() as w:
        document = (await w.http.get("/openapi.json")).json()
    post = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == TurnBody.model_fields.keys()
    assert "temperature" in schema["properties"]["sampling"]["properties"]
    assert "$defs" not in json.dumps(document)
