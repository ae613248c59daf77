"""Fleets with any state, said in one line per engine; and what strategies draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from agent_runtime.config import Role
from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.profile import Profile
from agent_runtime.scheduling.view import ClusterView, EngineFacts, Rank, TurnView
from dualpath_sglang.contract.engine_report import EngineReport, Memory, Rate, Unfinished
from dualpath_sglang.contract.ids import EngineId, RequestId

RNG = random.Random(0)
KV_BYTES = 1000
PAGE = 16
PLENTY = 10**9


@dataclass(frozen=True)
class Engine:
    """One engine and what it reports; rates in tokens per second, 0: no samples."""

    name: str
    role: Role
    up: bool = True
    plans: bool = True
    node: str = ""
    namespace: str = ""
    seq: int = 0
    tok: int = 0
    work: int = 0
    store_queue: int = 0
    peer_queue: int = 0
    store_rate: float = 0.0
    peer_rate: float = 0.0
    compute_rate: float = 0.0
    loadable: int = PLENTY
    load_limit: int = PLENTY
    free: int = PLENTY
    pool: int = PLENTY
    dp: int = 0
    requests: tuple[Unfinished, ...] = field(default=())

    @property
    def rank(self) -> Rank:
        return Rank(EngineId(self.name), self.dp)


def report_of(engine: Engine, number: int = 0) -> EngineReport:
    work = (Unfinished(RequestId("work"), 0, compute=engine.work),) if engine.work else ()
    return EngineReport(
        boot_nonce="boot",
        number=number,
        age_s=0.0,
        role="prefill" if engine.role == "prefill" else "decode",
        dp_rank=engine.dp,
        seq=engine.seq,
        tok=engine.tok,
        store_queue=engine.store_queue,
        peer_queue=engine.peer_queue,
        store=_rate(engine.store_rate * KV_BYTES),
        peer=_rate(engine.peer_rate * KV_BYTES),
        compute=_rate(engine.compute_rate),
        memory=Memory(
            device_free=engine.free,
            device_pool=engine.pool,
            host_free=0,
            host_pool=0,
            loadable=engine.loadable,
            load_limit=engine.load_limit,
        ),
        requests=work + engine.requests,
    )


def fleet_of(
    *engines: Engine, profile: Profile | None = None, reports: bool = True, now: float = 0.0
) -> Fleet:
    facts = [EngineFacts(engine.rank, engine.role, engine.node) for engine in engines]
    fleet = Fleet(facts, profile)
    for engine in engines:
        fleet.set_plans(engine.rank, engine.plans, KV_BYTES)
        fleet.set_namespace(engine.rank, engine.namespace)
        fleet.set_up(engine.rank, engine.up)
        if reports:
            fleet.report(engine.rank, report_of(engine), now)
    return fleet


def view_of(
    *engines: Engine, profile: Profile | None = None, reports: bool = True, **more: Any
) -> ClusterView:
    more.setdefault("max_inflight", 10**6)
    return fleet_of(*engines, profile=profile, reports=reports).view(**more)


def pd(prefill: int, decode: int, **more: Any) -> list[Engine]:
    """p0, p1, ... and d0, d1, ..., all alike."""
    p = [Engine(f"p{i}", "prefill", **more) for i in range(prefill)]
    return [*p, *(Engine(f"d{i}", "decode", **more) for i in range(decode))]


def turn(i: int = 0, pages: int | None = 0, tokens: int = 10_000, **more: Any) -> TurnView:
    given: dict[str, Any] = {"new_tokens": 10, "arrived": float(i), "page_size": PAGE}
    rid = RequestId(f"{i:032x}")
    return TurnView(rid, tokens, cached_pages=pages, **{**given, **more})


def turns_of(*pages: int) -> Sequence[TurnView]:
    return [turn(i, n) for i, n in enumerate(pages)]


def _rate(per_s: float) -> Rate:
    return Rate(per_s, 0.0, 1) if per_s else Rate()


amounts = st.integers(0, 50_000)


def engines_of(role: Role, most: int = 4) -> st.SearchStrategy[list[Engine]]:
    """Some engines of one role in any state; rooms and queues are often short."""
    one = st.builds(
        Engine,
        name=st.just(""),
        role=st.just(role),
        up=st.sampled_from([True, True, True, False]),
        plans=st.sampled_from([True, True, True, False]),
        node=st.sampled_from(["", "", "n0", "n1"]),
        seq=st.integers(0, 9),
        tok=amounts,
        work=amounts,
        store_queue=st.sampled_from([0, 500, 20_000]),
        peer_queue=st.sampled_from([0, 500, 20_000]),
        store_rate=st.sampled_from([0.0, 100.0, 5000.0]),
        peer_rate=st.sampled_from([0.0, 100.0, 5000.0]),
        compute_rate=st.sampled_from([0.0, 100.0, 5000.0]),
        loadable=st.sampled_from([0, 100, 2000, 10_000, PLENTY]),
        load_limit=st.sampled_from([10_000, PLENTY]),
        free=st.sampled_from([0, 2000, 12_000, PLENTY]),
        pool=st.sampled_from([20_000, PLENTY]),
    )
    return st.lists(one, min_size=1, max_size=most).map(
        lambda made: [_named(engine, f"{role[0]}{i}") for i, engine in enumerate(made)]
    )


def _named(engine: Engine, name: str) -> Engine:
    return Engine(**{**engine.__dict__, "name": name})


def _turn_view(i: int, tokens: int, pages: int | None, output: int, overtaken: int) -> TurnView:
    """As the router makes them: of a turn without a plan neither pages nor their size are known."""
    more = {"output_tokens": output, "overtaken": overtaken}
    if pages is None:
        return turn(i, None, tokens, page_size=0, no_plan="no store", **more)
    return turn(i, min(pages, (tokens - 1) // PAGE), tokens, **more)


turn_views = st.builds(
    _turn_view,
    st.integers(0, 10**6),
    st.integers(1, 12_000),
    st.one_of(st.none(), st.integers(0, 750), st.integers(0, 750)),
    st.integers(0, 500),
    st.sampled_from([0, 0, 0, 1000]),
)
queues = st.lists(turn_views, max_size=10, unique_by=lambda one: one.id)
clusters = st.tuples(engines_of("prefill"), engines_of("decode")).map(lambda two: two[0] + two[1])
