"""A turn through the pipeline with plans: what both engines are sent, what the record keeps.

`StubEngine` takes the place of `EngineClient`: it records each body and answers one token.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from agent_runtime.config import EngineEndpoint, RouterConfig, SplitPolicy
from agent_runtime.dispatch.counts import TurnCounts
from agent_runtime.dispatch.engine_client import Chunk
from agent_runtime.dispatch.engines import Engines
from agent_runtime.dispatch.events import Done
from agent_runtime.dispatch.limits import Limits
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.dispatch.pipeline import Pipeline
from agent_runtime.owners import ANONYMOUS
from agent_runtime.planning.planner import Planner
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.trajectory.model import TokenInput, TurnRecord, TurnRequest
from agent_runtime.trajectory.renderer import RendererClient
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.sessions import Sessions
from agent_runtime.trajectory.sqlite_store import SqliteStore
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.ids import EngineId, RequestId
from dualpath_sglang.contract.pages import KeyLayout, page_hashes
from dualpath_sglang.contract.plan import parse_kv_hints

LAYOUT = KeyLayout("m_", ("_0_k", "_0_v"), 16, 1)
ENDPOINTS = {
    EngineId("p0"): EngineEndpoint("p0", "prefill", "http://127.0.0.1:1", "127.0.0.1", 8998),
    EngineId("d0"): EngineEndpoint("d0", "decode", "http://127.0.0.1:2"),
}


class StubEngine:
    def __init__(self, endpoint: EngineEndpoint) -> None:
        self.endpoint = endpoint
        self.bodies: list[dict[str, Any]] = []

    async def generate(self, body: bytes) -> AsyncGenerator[Chunk, None]:
        self.bodies.append(orjson.loads(body))
        yield Chunk([7], "x", {"type": "length"}, {"completion_tokens": 1})

    async def abort(self, request_id: RequestId) -> None: ...


class SetStore:
    """A stub of the store's master."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    async def exist(self, keys: list[str]) -> list[bool]:
        return [key in self.keys for key in keys]

    def hold(self, tokens: list[int]) -> None:
        self.keys |= {key for page in page_hashes(tokens, 16) for key in LAYOUT.object_keys(page)}


class Router:
    """The router's core without HTTP."""

    def __init__(self, policy: SplitPolicy, store: SetStore | None, *, plugin: bool) -> None:
        config = RouterConfig(split_policy=policy)
        clock, rng = ManualClock(), random.Random(5)
        self.loop = PlacementLoop(ENDPOINTS, config, round_robin, clock=clock, rng=rng)
        self.stubs = {name: StubEngine(endpoint) for name, endpoint in ENDPOINTS.items()}
        self.sessions = Sessions(
            SqliteStore(":memory:"), max_sessions=9, max_loaded=9, wall_time=lambda: 0.0
        )
        planner = Planner(
            self.loop.infos,
            store,
            clock=clock,
            rng=rng,
            known_ttl_s=3.0,
            timeout_s=1.0,
            deadline_s=8.0,
        )
        clients: Any = self.stubs
        self.pipeline = Pipeline(
            self.sessions,
            RendererClient(""),
            self.loop,
            Engines(clients, self.loop, clock=clock, rng=rng),
            Limits(None, lambda: 100_000, 8),
            planner,
            None,
            TurnCounts(),
            clock=clock,
            default_deadline_s=10.0,
        )
        for name, state in self.loop.engines.items():
            role = state.endpoint.role
            exports = ("10.0.0.7:18011",) if role == "decode" else ()
            if plugin:
                info = EngineInfo(role, "0.5.23", 16, 1, "fp", "n", exports, (), LAYOUT)
                self.loop.report_info(name, None, info)
            self.loop.report_health(name, True, "")

    async def turn(self, session: Session, tokens: list[int]) -> TurnRecord:
        request = TurnRequest(TokenInput(pack(tokens)))
        request_id = RequestId(f"{session.turns:032x}")
        last = await self.pipeline.start(request_id, session, request).last()
        assert isinstance(last, Done), last
        return last.record

    def hints(self) -> tuple[Any, Any]:
        """`kv_hints` of the last turn at P and at D."""
        p, d = (stub.bodies[-1] for stub in self.stubs.values())
        return p.get("kv_hints"), d.get("kv_hints")


@asynccontextmanager
async def running(
    policy: SplitPolicy, store: SetStore | None, *, plugin: bool = True
) -> AsyncIterator[tuple[Router, Session]]:
    router = Router(policy, store, plugin=plugin)
    await router.sessions.open()
    yield router, await router.sessions.create(ANONYMOUS, None, {})
    await router.sessions.close()


async def test_both_engines_get_the_same_plan_and_the_record_shows_it() -> None:
    store = SetStore()
    async with running("split", store) as (router, session):
        first = await router.turn(session, list(range(100)))
        assert (first.placement.split, first.placement.pages) == (0, 0)
        assert router.hints() == (None, None), "nothing to load, nothing to say"
        store.hold([*range(100), 7])
        second = await router.turn(session, list(range(500, 520)))
        at_prefill, at_decode = router.hints()
        assert at_prefill == at_decode
        counted: Counter[str] = Counter()
        plan = parse_kv_hints(at_decode, counted)
        assert plan is not None
        assert not counted
        assert (plan.n, plan.k, plan.page, plan.peer) == (6, 3, 16, ("10.0.0.7:18011",))
        assert (second.placement.split, second.placement.pages) == (3, 6)
        assert "split over 1P1D" in second.placement.reason
        assert [router.loop.reading_tokens(name) for name in router.loop.engines] == [0, 0]
        stored = await router.sessions._store.load(session.head.name)
        assert stored is not None
        assert stored.turns[1].placement == second.placement


@pytest.mark.parametrize(
    ("policy", "has_store", "plugin", "reason"),
    [
        ("none", True, True, "round robin"),
        ("split", False, True, "round robin; no plan: the router knows no store to ask"),
        ("split", True, False, "round robin; no plan: no prefill engine publishes what a plan"),
    ],
)
async def test_no_plan_is_sent(
    policy: SplitPolicy, has_store: bool, plugin: bool, reason: str
) -> None:
    store = SetStore() if has_store else None
    async with running(policy, store, plugin=plugin) as (router, session):
        record = await router.turn(session, list(range(100)))
        assert router.hints() == (None, None)
        assert (record.placement.split, record.placement.pages) == (None, None)
        assert record.placement.reason.startswith(reason)
        assert record.output == pack([7])
