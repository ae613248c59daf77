"""Placement with a split by a fixed rule: which k comes with which engines."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from clusters import RNG, Engine, pd, turn, turns_of, view_of
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.config import EngineEndpoint, RouterConfig
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Placed
from agent_runtime.scheduling.split import Rule
from agent_runtime.scheduling.view import ClusterView, Cursor, TurnView
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.ids import EngineId
from dualpath_sglang.contract.pages import KeyLayout

LAYOUT = KeyLayout("m_", ("_0_k", "_0_v"), 16, 1)
RULES = sorted({rule for rules in get_args(Rule) for rule in get_args(rules)} - {"none"})


def place(given_view: ClusterView, *turns: TurnView) -> list[Placed]:
    decisions = round_robin(given_view, turns, 0.0, RNG)
    assert all(isinstance(decision, Placed) for decision in decisions)
    return [decision for decision in decisions if isinstance(decision, Placed)]


@pytest.mark.parametrize(("prefill", "decode", "k"), [(1, 1, 150), (1, 2, 200), (2, 1, 100)])
@pytest.mark.parametrize("rule", ["split", "auto"])
def test_split_by_fleet(rule: str, prefill: int, decode: int, k: int) -> None:
    (placed,) = place(view_of(*pd(prefill, decode), split_policy=rule), turn(0, 300))
    assert (placed.split, placed.pages) == (k, 300)
    assert (placed.prefill_reads, placed.decode_reads) == ((300 - k) * 16, k * 16)
    assert (placed.pulls, placed.computes) == (k * 16, 10_000 - 300 * 16)
    assert f"split over {prefill}P{decode}D" in placed.reason


def test_paths_alternate_so_that_every_engine_has_both() -> None:
    turns = turns_of(8, 8, 8, 8)
    placed = place(view_of(*pd(1, 2), split_policy="round_robin"), *turns)
    assert [(p.decode, p.split) for p in placed] == [("d0", 0), ("d1", 0), ("d0", 8), ("d1", 8)]
    placed = place(view_of(*pd(2, 1), split_policy="round_robin"), *turns)
    assert [(p.prefill, p.split) for p in placed] == [("p0", 0), ("p1", 0), ("p0", 8), ("p1", 8)]


def test_paths_go_on_alternating_in_the_next_pass() -> None:
    first = view_of(*pd(1, 1), split_policy="round_robin")
    assert place(first, turn(0, 8))[0].split == 0
    assert place(replace(first, cursor=Cursor(splits=1)), turn(1, 8))[0].split == 8


def test_shorter_queue_counts_the_turns_of_the_same_pass() -> None:
    view = view_of(*pd(1, 1), split_policy="shorter_queue")
    assert [p.split for p in place(view, *turns_of(10, 4, 4, 4))] == [0, 4, 4, 4]
    busy = [Engine("p0", "prefill", store_queue=32), Engine("d0", "decode", store_queue=160)]
    assert place(view_of(*busy, split_policy="shorter_queue"), turn(0, 4))[0].split == 0


def test_only_engines_that_take_plans_count() -> None:
    engines = [*pd(1, 1), Engine("p9", "prefill", plans=False)]
    placed = place(view_of(*engines, split_policy="split"), turn(0, 10), turn(1, 10))
    assert (placed[0].prefill, placed[0].split) == ("p0", 5)
    assert (placed[1].prefill, placed[1].split, placed[1].pages) == ("p9", None, None)
    assert placed[1].reason == "round robin; no plan: 'p9' takes none"


def test_engines_with_other_pages_do_not_count() -> None:
    named = pd(1, 1, namespace="a")
    others = [engine for engine in pd(3, 3, namespace="b") if not engine.name.endswith("0")]
    known = turn(0, 10, namespace="a")
    (here,) = place(view_of(*named, *others, split_policy="split"), known)
    assert (here.decode, here.split) == ("d0", 5), "1P1D, not 3P3D"
    (there,) = place(view_of(*others, split_policy="split"), known)
    assert (there.split, there.pages) == (None, None)
    assert "other engines' pages" in there.reason


def test_no_plan_without_a_known_prefix_or_by_policy() -> None:
    unknown_turn = turn(0, None, no_plan="the store is away")
    (unknown,) = place(view_of(*pd(1, 1), split_policy="split"), unknown_turn)
    assert (unknown.split, unknown.reason) == (None, "round robin; no plan: the store is away")
    (none,) = place(view_of(*pd(1, 1), split_policy="none"), turn(0, 10))
    assert (none.split, none.pages, none.reason) == (None, None, "round robin")
    plain = Engine("e0", "plain", plans=False)
    (only,) = place(view_of(plain, split_policy="split"), turn(0, None, no_plan="x"))
    assert (only.prefill, only.decode, only.split) == ("e0", "e0", None)


def test_nothing_cached_is_still_a_plan() -> None:
    (placed,) = place(view_of(*pd(1, 1), split_policy="split"), turn(0, 0))
    assert (placed.split, placed.pages, placed.prefill_reads, placed.decode_reads) == (0, 0, 0, 0)


def test_d_stages_no_more_than_it_has_room_for() -> None:
    engines = [Engine("p0", "prefill"), Engine("d0", "decode", loadable=3 * 16 + 15)]
    view = view_of(*engines, split_policy="decode_path")
    first, second = place(view, turn(0, 10), turn(1, 10))
    assert (first.split, first.prefill_reads, first.decode_reads) == (3, 7 * 16, 3 * 16)
    assert first.reason.endswith("D has room for 3 of 10 pages")
    assert second.split == 0, "the first has taken it"


def test_what_is_in_memory_is_not_read() -> None:
    engines = pd(1, 1)
    given_turn = turn(0, 10, held={engines[0].rank: 2, engines[1].rank: 4})
    (placed,) = place(view_of(*engines, split_policy="split"), given_turn)
    assert (placed.split, placed.prefill_reads, placed.decode_reads) == (5, 5 * 16, 16)
    assert placed.pulls == 3 * 16


@given(
    st.sampled_from(RULES),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 500), min_size=1, max_size=12),
)
def test_every_page_is_read_once(policy: str, p: int, d: int, pages: list[int]) -> None:
    given_view = view_of(*pd(p, d), split_policy=policy)
    placed = place(given_view, *turns_of(*pages))
    for decision, n in zip(placed, pages, strict=True):
        assert decision.split is not None
        assert 0 <= decision.split <= n
        assert decision.prefill_reads + decision.decode_reads == n * 16
    assert place(given_view, *turns_of(*pages)) == placed, "the same arguments, the same decisions"


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

    def reading() -> list[int]:
        return [loop.reading_tokens(name) for name in loop.engines]

    first = await loop.place(turn(0, 10))
    second = await loop.place(turn(1, 4))
    assert reading() == [7 * 16, 7 * 16]
    loop.loaded(first.id)
    loop.loaded(first.id)
    assert reading() == [2 * 16, 2 * 16]
    loop.release(first.id)
    loop.release(second.id)
    assert reading() == [0, 0]
    assert loop.inflight == 0
