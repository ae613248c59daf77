"""The planner: when there is a plan, what is in it, and why there is none."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_runtime.planning.chain import prompt_chain
from agent_runtime.planning.plan_fleet import PlanFleet, plan_fleet
from agent_runtime.planning.planner import Infos, Planner
from agent_runtime.scheduling.placement import Placed
from agent_runtime.trajectory.model import (
    PlacementRecord,
    SessionHead,
    Tiers,
    Timing,
    TurnRecord,
    Usage,
)
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.errors import StoreFailure
from dualpath_sglang.contract.ids import EngineId, RequestId, SessionId
from dualpath_sglang.contract.pages import KeyLayout, page_hashes

LAYOUT = KeyLayout("m_", ("_0_k", "_0_v"), 16, 1)
P0, P1, D0, D1 = (EngineId(name) for name in ("p0", "p1", "d0", "d1"))


def info(role: str, port: int = 1) -> EngineInfo:
    exports = (f"10.0.0.{port}:18011",) if role == "decode" else ()
    return EngineInfo(role, "0.5.23", 16, 4096, "f" * 16, f"nonce{port}", exports, (), LAYOUT)


FLEET: Mapping[EngineId, EngineInfo | None] = {
    P0: info("prefill"),
    D0: info("decode", 7),
    D1: info("decode", 8),
}


class SetStore:
    """A stub of the store: object keys, and whether it answers."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.broken = False
        self.queries = 0
        self.asked = 0

    def hold(self, tokens: Sequence[int]) -> None:
        self.keys |= {key for page in page_hashes(tokens, 16) for key in LAYOUT.object_keys(page)}

    async def exist(self, keys: Sequence[str]) -> list[bool]:
        self.queries += 1
        self.asked += len(keys)
        if self.broken:
            raise StoreFailure("the store's master is gone (stub)")
        return [key in self.keys for key in keys]


def make_planner(
    store: SetStore | None,
    infos: Infos = lambda: FLEET,
    clock: ManualClock | None = None,
) -> Planner:
    return Planner(
        infos,
        store,
        clock=clock or ManualClock(),
        rng=random.Random(3),
        known_ttl_s=3.0,
        timeout_s=0.2,
        deadline_s=8.0,
    )


def new_session() -> Session:
    return Session(SessionHead(SessionId("s"), 0.0, {}))


def commit(session: Session, kept: int, new: Sequence[int], output: Sequence[int] = ()) -> None:
    session.commit(
        TurnRecord(
            turn=session.turns,
            kept=kept,
            input=pack(new),
            output=pack(output),
            text="",
            finish_reason="length",
            usage=Usage(0, 0, 0, Tiers(), None),
            placement=PlacementRecord("p0", "d0", None, ""),
            timing=Timing(0.0, None, 0.0),
        )
    )


def placed(split: int | None, decode: EngineId = D0) -> Placed:
    return Placed(RequestId("0" * 32), P0, decode, split, "stub")


async def test_a_plan_says_what_was_found_and_decided() -> None:
    store = SetStore()
    prompt = pack(range(1000))
    store.hold(prompt[:640])
    planner = make_planner(store)
    cached = await planner.look_up(new_session(), 0, prompt)
    assert cached.pages == 40
    plan = planner.plan(placed(15, D1), cached)
    assert plan is not None
    assert (plan.n, plan.k, plan.page, plan.deadline_ms) == (40, 15, 16, 8000)
    assert plan.peer == ("10.0.0.8:18011",)
    assert plan.fingerprint == "f" * 16
    again = planner.plan(placed(15, D1), cached)
    assert again is not None
    assert again.plan_id != plan.plan_id
    assert planner.plan(placed(None), cached) is None


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2)])
async def test_the_page_of_the_last_token_is_never_planned(tokens: int, pages: int) -> None:
    store = SetStore()
    store.hold(range(64))
    cached = await make_planner(store).look_up(new_session(), 0, pack(range(tokens)))
    assert cached.pages == pages


async def test_no_plan_without_store_plugin_or_answer() -> None:
    session, prompt, store, clock = new_session(), pack(range(100)), SetStore(), ManualClock()
    bare = await make_planner(None).look_up(session, 0, prompt)
    assert (bare.pages, bare.why) == (None, "the router knows no store to ask")
    plain = await make_planner(store, lambda: {P0: None, D0: None}).look_up(session, 0, prompt)
    assert plain.why == "no prefill engine publishes what a plan needs"
    assert store.queries == 0
    planner = make_planner(store, clock=clock)
    store.broken = True
    failed = await planner.look_up(session, 0, prompt)
    assert (failed.pages, failed.why) == (None, "the store's master is gone (stub)")
    store.broken = False
    assert (await planner.look_up(session, 0, prompt)).pages is None
    assert store.queries == 1, "a master that failed is left alone for a while"
    clock.advance(5.0)
    assert (await planner.look_up(session, 0, prompt)).pages == 0
    assert planner.plan(placed(0), failed) is None


async def test_engines_restarted_with_other_keys_start_from_nothing() -> None:
    fleet = dict(FLEET)
    store = SetStore()
    store.hold(range(160))
    planner = make_planner(store, lambda: dict(fleet))
    prompt = pack(range(161))
    assert (await planner.look_up(new_session(), 0, prompt)).pages == 10
    other = replace(LAYOUT, prefix="other_")
    fleet |= {name: replace(found, key_layout=other) for name, found in fleet.items() if found}
    assert (await planner.look_up(new_session(), 0, prompt)).pages == 0


def test_fleet_that_agrees() -> None:
    fleet = plan_fleet({**FLEET, P1: None})
    assert isinstance(fleet, PlanFleet)
    assert fleet.engines == {P0, D0, D1}
    assert fleet.exports == {D0: ("10.0.0.7:18011",), D1: ("10.0.0.8:18011",)}


def other(name: EngineId) -> EngineInfo:
    found = FLEET[name]
    assert found is not None
    return replace(found, fingerprint="other")


@pytest.mark.parametrize(
    ("changed", "members"),
    [
        ({D1: other(D1)}, {P0, D0}),
        ({D1: replace(info("decode"), exports=())}, {P0, D0}),
        ({D1: replace(info("decode"), key_layout=replace(LAYOUT, prefix="x_"))}, {P0, D0}),
        ({P1: info("prefill"), P0: other(P0), D0: other(D0)}, {P0, D0}),
        ({P1: replace(info("prefill"), fingerprint="other")}, {P0, D0, D1}),
    ],
    ids=["one differs", "one exports nothing", "other keys", "two halves", "a lone prefill engine"],
)
def test_one_engine_that_differs_does_not_end_planning(
    changed: dict[EngineId, EngineInfo], members: set[EngineId]
) -> None:
    fleet = plan_fleet({**FLEET, **changed})
    assert isinstance(fleet, PlanFleet)
    assert fleet.engines == members
    assert fleet.exports.keys() == {name for name in members if name in (D0, D1)}


def test_the_group_that_serves_more_turns_at_once_is_planned_for() -> None:
    """While weights are updated one engine after the other."""
    more = {P1: info("prefill"), EngineId("p2"): info("prefill"), D1: other(D1), P0: other(P0)}
    fleet = plan_fleet({**FLEET, **more})
    assert isinstance(fleet, PlanFleet)
    assert fleet.engines == {P1, EngineId("p2"), D0}


async def test_a_pair_of_another_group_gets_no_plan() -> None:
    store = SetStore()
    store.hold(range(640))
    planner = make_planner(store, lambda: {**FLEET, D1: other(D1)})
    cached = await planner.look_up(new_session(), 0, pack(range(1000)))
    assert (cached.pages, cached.namespace) == (40, "f" * 16)
    assert planner.plan(placed(15, D0), cached) is not None
    assert planner.plan(placed(15, D1), cached) is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({D0: None, D1: None}, "no decode engine publishes"),
        ({P0: replace(info("prefill"), page_size=64)}, "pages of 64 tokens, its store 16"),
        ({D0: None, D1: replace(info("decode"), exports=())}, "'d1' exports 0 of 1 ranks"),
        ({P0: other(P0)}, "agree in model, weights, layout, pages and keys: 'p0': other, 'd0': ff"),
    ],
)
def test_fleet_that_cannot_plan(changed: dict[EngineId, EngineInfo | None], says: str) -> None:
    result = plan_fleet({**FLEET, **changed})
    assert isinstance(result, str)
    assert says in result


turns = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.lists(st.integers(0, 9), min_size=1, max_size=60),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
)


@given(turns)
def test_hashes_are_right_through_cuts_failures_and_unplanned_turns(
    story: list[tuple[int, list[int], bool, bool]],
) -> None:
    session = new_session()
    for cut, new, planned, succeeds in story:
        kept = min(cut, len(session.tokens))
        prompt = session.tokens[:kept] + pack(new)
        if planned:
            expected = page_hashes(prompt, 16)[: (len(prompt) - 1) // 16]
            chain = prompt_chain(session, kept, prompt, 16)
            assert len(chain) == len(expected)
            assert chain.kept <= kept // 16
            middle = len(chain) // 2
            assert chain.hashes(0, middle) + chain.hashes(middle, len(chain)) == expected
            assert chain.hashes(middle, len(chain)) == expected[middle:]
        if succeeds:
            commit(session, kept, new, [1, 2, 3])


def test_a_turn_hashes_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    from dualpath_sglang.contract import pages

    original = pages._bytes

    def counting(tokens: Sequence[int]) -> bytes:
        hashed.append(len(tokens))
        return original(tokens)

    monkeypatch.setattr(pages, "_bytes", counting)
    session = new_session()
    commit(session, 0, range(16_000))
    for _ in range(2):
        hashed.clear()
        chain = prompt_chain(session, 16_000, session.tokens + array("I", range(40)), 16)
        assert len(chain.hashes(999, 1002)) == 3
    assert sum(hashed) == 32


async def test_a_known_prompt_costs_what_is_new_however_long_it_is() -> None:
    """Of 1000 pages that were seen a moment ago only the last is asked for again."""
    store = SetStore()
    planner = make_planner(store)
    session = new_session()
    store.hold(range(16_200))
    commit(session, 0, range(16_000))
    prompt = session.tokens + array("I", range(16_000, 16_040))
    assert (await planner.look_up(session, 16_000, prompt)).pages == 1002
    store.queries, store.asked = 0, 0
    commit(session, 16_000, range(16_000, 16_040))
    again = session.tokens + array("I", range(16_040, 16_100))
    assert (await planner.look_up(session, 16_040, again)).pages == 1006
    assert (store.queries, store.asked) == (1, 5 * len(LAYOUT.suffixes))


async def test_what_is_known_of_a_history_ends_where_the_history_was_cut() -> None:
    store = SetStore()
    planner = make_planner(store)
    session = new_session()
    store.hold(range(1600))
    commit(session, 0, range(1600))
    assert (await planner.look_up(session, 1600, session.tokens + array("I", [1]))).pages == 100
    other = array("I", [*range(800), *range(5000, 5900)])
    assert (await planner.look_up(session, 800, other)).pages == 50
    commit(session, 800, range(5000, 5900))
    assert (await planner.look_up(session, 1700, session.tokens + array("I", [1]))).pages == 50
    store.hold(other)
    assert (await planner.look_up(session, 1700, session.tokens + array("I", [1]))).pages == 106


async def test_one_deadline_for_all_questions_of_a_look_up() -> None:
    class Slow(SetStore):
        async def exist(self, keys: Sequence[str]) -> list[bool]:
            await asyncio.sleep(0.15)
            return await super().exist(keys)

    store = Slow()
    store.hold(range(16 * 100))
    planner = make_planner(store)
    cached = await planner.look_up(new_session(), 0, pack(range(1601)))
    assert (cached.pages, cached.why) == (None, "the store's master: no answer in 0.2 s")
    assert "a moment ago" in (await planner.look_up(new_session(), 0, pack(range(99)))).why


async def test_the_fleet_is_looked_at_when_the_engines_say_something_new() -> None:
    store = SetStore()
    store.hold(range(64))
    fleets: list[Mapping[EngineId, EngineInfo | None]] = [FLEET, {P0: info("prefill")}, FLEET]
    planner = Planner(
        lambda: fleets[0], store, clock=ManualClock(), rng=random.Random(3),
        known_ttl_s=3.0, timeout_s=1.0, deadline_s=8.0,
    )  # fmt: skip
    prompt = pack(range(65))
    assert (await planner.look_up(new_session(), 0, prompt)).pages == 4
    fleets.pop(0)
    assert (await planner.look_up(new_session(), 0, prompt)).pages is None
    fleets.pop(0)
    assert (await planner.look_up(new_session(), 0, prompt)).pages == 4
