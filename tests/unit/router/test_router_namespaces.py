"""Engines whose weights are updated while they serve: only equal ones serve a turn together."""

from __future__ import annotations

from typing import Any

from router_world import World, eventually, failure, world
from stub_engines import StubEngine

from agent_runtime.config import Role
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.pages import KeyLayout

TURN: dict[str, Any] = {"token_ids": [1], "max_new_tokens": 1}


def says(role: Role, weights: str) -> dict[str, Any]:
    layout = KeyLayout(f"{weights}_", ("_0_k", "_0_v"), 16, 1)
    exports = ("h:1",) if role == "decode" else ()
    return EngineInfo(role, "", 16, 1, weights, "nonce", exports, (), layout).to_tree()


def fleet(prefill: int, decode: int, weights: str = "old") -> list[StubEngine]:
    roles: list[Role] = ["prefill"] * prefill + ["decode"] * decode
    return [
        StubEngine(f"{role[0]}{i}", role, info=says(role, weights)) for i, role in enumerate(roles)
    ]


def update(engine: StubEngine, weights: str) -> None:
    engine.info = says(engine.role, weights)


async def pairs(w: World, turns: int) -> set[tuple[str, str]]:
    found = set()
    for _ in range(turns):
        placement = (await w.done(await w.session(), **TURN))["placement"]
        found.add((placement["prefill"], placement["decode"]))
    return found


def namespaces(w: World) -> list[str]:
    infos = [state.info for state in w.router.loop.engines.values()]
    return ["" if info is None else info.fingerprint for info in infos]


async def test_an_update_is_noticed_at_the_next_health_check() -> None:
    async with world(*fleet(2, 2), health_interval_s=0.05) as w:
        assert await pairs(w, 4) == {("p0", "d2"), ("p1", "d3")}
        update(w.engines[0], "new")
        await eventually(lambda: namespaces(w) == ["new", "old", "old", "old"])
        assert await pairs(w, 4) == {("p1", "d2"), ("p1", "d3")}
        update(w.engines[3], "new")
        await eventually(lambda: namespaces(w) == ["new", "old", "old", "new"])
        assert await pairs(w, 6) == {("p0", "d3"), ("p1", "d2")}


async def test_engines_that_differ_serve_nothing_and_the_router_says_why() -> None:
    async with world(*fleet(1, 1), health_interval_s=0.05) as w:
        update(w.prefill, "new")
        await eventually(lambda: namespaces(w) == ["new", "old"])
        reply = await w.turn(await w.session(), **TURN)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert "'p0': new, 'd1': old" in failure(reply)["message"]
        ready = (await w.http.get("/ready")).json()
        assert (ready["ready"], ready["missing"]) == (False, [])
        assert "'p0': new, 'd1': old" in ready["why"]


async def test_a_turn_waits_for_the_update_of_the_other_engine() -> None:
    async with world(*fleet(1, 1), health_interval_s=0.05, no_engine_wait_s=5.0) as w:
        update(w.prefill, "new")
        await eventually(lambda: namespaces(w) == ["new", "old"])
        sid = await w.session()
        w.engines[1].info = says("decode", "new")
        assert (await w.done(sid, **TURN))["finish_reason"] == "length"


async def test_an_engine_too_busy_to_answer_stays_as_known() -> None:
    async with world(*fleet(1, 1), health_interval_s=0.02) as w:
        w.prefill.works = False
        assert await pairs(w, 2) == {("p0", "d1")}
        assert namespaces(w) == ["old", "old"]


async def test_engines_that_say_nothing_serve_with_their_like_only() -> None:
    engines = [*fleet(1, 1), StubEngine("p9", "prefill"), StubEngine("d9", "decode")]
    async with world(*engines) as w:
        assert await pairs(w, 4) == {("p0", "d1"), ("p9", "d9")}
