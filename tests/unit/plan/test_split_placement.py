"""Placement with a split: which k comes with which engines, and the tokens each is left to read."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.config import EngineEndpoint, Role, RouterConfig, SplitPolicy
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Placed
from agent_runtime.scheduling.split import SPLIT_POLICIES
from agent_runtime.scheduling.view import ClusterView, Cursor, EngineView, TurnView
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.ids import EngineId, RequestId
from dualpath_sglang.contract.pages import KeyLayout

RNG = random.Random(0)
LAYOUT = KeyLayout("m_", ("_0_k", "_0_v"), 16, 1)


def engine(name: str, role: Role, *, plans: bool = True, reading: int = 0) -> EngineView:
    return EngineView(EngineId(name), role, True, 0, plans, reading)


def fleet(prefill: int, decode: int) -> tuple[EngineView, ...]:
    p = [engine(f"p{i}", "prefill") for i in range(prefill)]
    return (*p, *(engine(f"d{i}", "decode") for i in range(decode)))


def view(policy: SplitPolicy, engines: tuple[EngineView, ...]) -> ClusterView:
    return ClusterView(engines, 0, 100, split_policy=policy)


def turn(i: int, pages: int | None, why: str = "") -> TurnView:
    return TurnView(RequestId(f"{i:032x}"), 10_000, 10, 0.0, pages, 16, why)


def place(given_view: ClusterView, *turns: TurnView) -> list[Placed]:
    decisions = round_robin(given_view, turns, 0.0, RNG)
    assert all(isinstance(decision, Placed) for decision in decisions)
    return [decision for decision in decisions if isinstance(decision, Placed)]


@pytest.mark.parametrize(("prefill", "decode", "k"), [(1, 1, 150), (1, 2, 200), (2, 1, 100)])
def test_split_by_fleet(prefill: int, decode: int, k: int) -> None:
    (placed,) = place(view("split", fleet(prefill, decode)), turn(0, 300))
    assert (placed.split, placed.pages) == (k, 300)
    assert placed.prefill_reads == (300 - k) * 16
    assert placed.decode_reads == k * 16
    assert f"split over {prefill}P{decode}D" in placed.reason


def test_paths_alternate_so_that_every_engine_has_both() -> None:
    turns = [turn(i, 8) for i in range(4)]
    placed = place(view("round_robin", fleet(1, 2)), *turns)
    assert [(p.decode, p.split) for p in placed] == [("d0", 0), ("d1", 0), ("d0", 8), ("d1", 8)]
    placed = place(view("round_robin", fleet(2, 1)), *turns)
    assert [(p.prefill, p.split) for p in placed] == [("p0", 0), ("p1", 0), ("p0", 8), ("p1", 8)]


def test_paths_go_on_alternating_in_the_next_pass() -> None:
    first = view("round_robin", fleet(1, 1))
    assert place(first, turn(0, 8))[0].split == 0
    assert place(replace(first, cursor=Cursor(splits=1)), turn(1, 8))[0].split == 8


def test_shorter_queue_counts_the_turns_of_the_same_pass() -> None:
    turns = [turn(0, 10), turn(1, 4), turn(2, 4), turn(3, 4)]
    placed = place(view("shorter_queue", fleet(1, 1)), *turns)
    assert [p.split for p in placed] == [0, 4, 4, 4]
    busy = (engine("p0", "prefill", reading=32), engine("d0", "decode", reading=160))
    assert [p.split for p in place(view("shorter_queue", busy), turn(0, 4))] == [0]


def test_only_engines_that_take_plans_count() -> None:
    engines = (*fleet(1, 1), engine("p9", "prefill", plans=False))
    placed = place(view("split", engines), turn(0, 10), turn(1, 10))
    assert (placed[0].prefill, placed[0].split) == ("p0", 5)
    assert (placed[1].prefill, placed[1].split, placed[1].pages) == ("p9", None, None)
    assert placed[1].reason == "round robin; no plan: 'p9' takes none"


def test_engines_with_other_pages_do_not_count() -> None:
    named = tuple(replace(e, namespace="a") for e in fleet(1, 1))
    others = tuple(replace(e, namespace="b") for e in fleet(3, 3)[1:3] + fleet(3, 3)[4:])
    known = replace(turn(0, 10), namespace="a")
    (here,) = place(view("split", named + others), known)
    assert (here.decode, here.split) == ("d0", 5), "1P1D, not 3P3D"
    (there,) = place(replace(view("split", others)), known)
    assert (there.split, there.pages) == (None, None)
    assert "other engines' pages" in there.reason


def test_no_plan_without_a_known_prefix_or_by_policy() -> None:
    (unknown,) = place(view("split", fleet(1, 1)), turn(0, None, "the store is away"))
    assert (unknown.split, unknown.reason) == (None, "round robin; no plan: the store is away")
    (none,) = place(view("none", fleet(1, 1)), turn(0, 10))
    assert (none.split, none.pages, none.reason) == (None, None, "round robin")
    plain = (engine("e0", "plain", plans=False),)
    (only,) = place(view("split", plain), turn(0, None, "x"))
    assert (only.prefill, only.decode, only.split) == ("e0", "e0", None)


def test_nothing_cached_is_still_a_plan() -> None:
    (placed,) = place(view("split", fleet(1, 1)), turn(0, 0))
    assert (placed.split, placed.pages, placed.prefill_reads, placed.decode_reads) == (0, 0, 0, 0)


@given(
    st.sampled_from([p for p in SPLIT_POLICIES if p != "none"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 500), min_size=1, max_size=12),
)
def test_every_page_is_read_once(policy: SplitPolicy, p: int, d: int, pages: list[int]) -> None:
    given_view = view(policy, fleet(p, d))
    turns = [turn(i, n) for i, n in enumerate(pages)]
    placed = place(given_view, *turns)
    for decision, n in zip(placed, pages, strict=True):
        assert decision.split is not None
        assert 0 <= decision.split <= n
        assert decision.prefill_reads + decision.decode_reads == n * 16
    assert place(given_view, *turns) == placed, "the same arguments, the same decisions"


async def test_the_loop_counts_what_is_left_to_read_and_forgets_it() -> None:
    endpoints: dict[EngineId, EngineEndpoint] = {
        EngineId("p0"): EngineEndpoint("p0", "prefill", "http://127.0.0.1:1"),
        EngineId("d0"): EngineEndpoint("d0", "decode", "http://127.0.0.1:2"),
    }
    config = RouterConfig(split_policy="split")
    loop = PlacementLoop(endpoints, config, round_robin, clock=ManualClock(), rng=RNG)
    for name, state in loop.engines.items():
        info = EngineInfo(state.endpoint.role, "", 16, 1, "f", "n", ("h:1",), (), LAYOUT)
        loop.report_info(name, None, info)
        loop.report_health(name, True, "")
    first = await loop.place(turn(0, 10))
    second = await loop.place(turn(1, 4))
    assert [s.reading_tokens for s in loop.engines.values()] == [7 * 16, 7 * 16]
    loop.loaded(first.id)
    loop.loaded(first.id)
    assert [s.reading_tokens for s in loop.engines.values()] == [2 * 16, 2 * 16]
    assert [e.reading_tokens for e in loop.view().engines] == [2 * 16, 2 * 16]
    loop.release(first.id)
    loop.release(second.id)
    assert [s.reading_tokens for s in loop.engines.values()] == [0, 0]
    assert loop.inflight == 0
