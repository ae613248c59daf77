"""What must hold for every policy, whatever the fleet and the queue."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from clusters import (
    PAGE,
    Engine,
    clusters,
    engines_of,
    fleet_of,
    queues,
    report_of,
    turn,
    view_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.config import SplitPolicy
from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.passes import MAX_OVERTAKEN
from agent_runtime.scheduling.placement import Decision, Placed, Policy, Refused, Waiting
from agent_runtime.scheduling.policies import PATHS, POLICIES
from agent_runtime.scheduling.view import ClusterView, Rank, TurnView
from dualpath_sglang.contract.ids import EngineId, RequestId

ALL: dict[str, Policy] = {**POLICIES, "shorter_queue": PATHS["shorter_queue"]}
some = settings(max_examples=40)
every_policy = pytest.mark.parametrize("policy", ALL.values(), ids=ALL.keys())
splits = st.sampled_from(["auto", "auto", "best", "split", "decode_path", "prefill_path", "none"])


def schedule(policy: Policy, view: ClusterView, queue: Sequence[TurnView]) -> list[Decision]:
    return policy(view, queue, 1e6, random.Random(1))


def engine_of(engines: Sequence[Engine], name: EngineId) -> Engine:
    return next(engine for engine in engines if engine.name == name)


@every_policy
@some
@given(engines=clusters, queue=queues, split=splits, limit=st.sampled_from([3, 10**6]))
def test_one_decision_each_on_engines_that_are_up_and_have_room(
    policy: Policy, engines: list[Engine], queue: list[TurnView], split: SplitPolicy, limit: int
) -> None:
    view = view_of(*engines, split_policy=split, max_inflight=limit)
    decisions = schedule(policy, view, queue)
    assert [d.id for d in decisions] == [one.id for one in queue]
    assert decisions == schedule(policy, view, queue), "the same arguments, the same decisions"
    loads: Counter[EngineId] = Counter()
    stages: Counter[EngineId] = Counter()
    kv: Counter[EngineId] = Counter()
    for one, decision in zip(queue, decisions, strict=True):
        assert decision.reason
        if not isinstance(decision, Placed):
            continue
        p, d = engine_of(engines, decision.prefill), engine_of(engines, decision.decode)
        assert (p.role, p.up, d.role, d.up) == ("prefill", True, "decode", True)
        if decision.split is not None:
            assert p.plans
            assert d.plans
            assert 0 <= decision.split <= (decision.pages or 0)
        loads[decision.prefill] += min(
            decision.prefill_reads + decision.pulls, p.load_limit - loads[decision.prefill]
        )
        stages[decision.decode] += decision.decode_reads
        kv[decision.decode] += one.prompt_tokens + one.output_tokens
    assert sum(isinstance(d, Placed) for d in decisions) <= limit
    for engine in engines:
        name = EngineId(engine.name)
        assert loads[name] <= max(0, engine.loadable)
        assert stages[name] <= max(0, engine.loadable)
        assert kv[name] <= max(0, engine.free)


@every_policy
@some
@given(engines=clusters, queue=queues, split=splits)
def test_what_a_placement_says_is_moved_adds_up(
    policy: Policy, engines: list[Engine], queue: list[TurnView], split: SplitPolicy
) -> None:
    """Whoever supplies a page: P has all of the prefix in the end, D what P pulls from it."""
    rank = Rank(EngineId("p0"))
    queue = [replace(one, held={rank: 3}) if i % 2 else one for i, one in enumerate(queue)]
    for one, decision in zip(
        queue, schedule(policy, view_of(*engines, split_policy=split), queue), strict=True
    ):
        if isinstance(decision, Placed) and decision.split is not None:
            n = one.cached_pages or 0
            p = min(n, one.held.get(Rank(decision.prefill), 0))
            assert decision.pages == n
            assert decision.prefill_reads + decision.pulls == (n - p) * PAGE
            assert decision.decode_reads == decision.split * PAGE
            known = max(n, one.held.get(Rank(decision.prefill), 0)) * PAGE
            assert decision.computes == max(1, one.prompt_tokens - known)


@every_policy
@some
@given(engines=engines_of("plain"), queue=queues)
def test_plain_engines_do_both_halves(
    policy: Policy, engines: list[Engine], queue: list[TurnView]
) -> None:
    for decision in schedule(policy, view_of(*engines), queue):
        if isinstance(decision, Placed):
            assert decision.prefill == decision.decode
            assert engine_of(engines, decision.decode).up
            assert decision.split is None


@every_policy
@some
@given(queue=queues)
def test_equal_turns_are_placed_in_the_order_of_arrival(
    policy: Policy, queue: list[TurnView]
) -> None:
    """Room for some of them: the first ones get it."""
    queue = [turn(i, 10, 1000) for i in range(len(queue))]
    engines = [Engine("p0", "prefill", loadable=800), Engine("d0", "decode", free=3500)]
    kinds = [type(d) for d in schedule(policy, view_of(*engines, split_policy="auto"), queue)]
    placed = kinds.count(Placed)
    assert kinds == [Placed] * placed + [Waiting] * (len(kinds) - placed)
    assert placed == min(len(queue), 3)


@every_policy
def test_turns_of_another_namespace_are_never_paired(policy: Policy) -> None:
    engines = [
        Engine("p0", "prefill", namespace="a", tok=5),
        Engine("p1", "prefill", namespace="b"),
        Engine("d0", "decode", namespace="b", tok=5),
        Engine("d1", "decode", namespace="a"),
        Engine("d2", "decode", namespace="c"),
    ]
    view = view_of(*engines, split_policy="auto")
    decisions = schedule(policy, view, [turn(i) for i in range(9)])
    pairs = {(d.prefill, d.decode) for d in decisions if isinstance(d, Placed)}
    assert pairs
    assert pairs <= {("p0", "d1"), ("p1", "d0")}


@every_policy
@pytest.mark.parametrize("seed", range(3))
def test_no_turn_waits_for_ever(policy: Policy, seed: int) -> None:
    """A fleet that is always full of small turns. The big one, which needs nearly all of it, is
    passed by a bounded number of them and then placed."""
    rng = random.Random(seed)
    engines = [
        Engine("p0", "prefill", loadable=60 * PAGE, load_limit=60 * PAGE),
        Engine("p1", "prefill", loadable=60 * PAGE, load_limit=60 * PAGE),
        Engine("d0", "decode", free=1200, pool=1200),
        Engine("d1", "decode", free=1200, pool=1200),
    ]
    world = _World(policy, fleet_of(*engines), rng)
    big = turn(10**6, 55, 1100)
    for i in range(40):
        world.arrives(small(i, rng))
    world.arrives(big)
    count = 40
    for _ in range(40 * MAX_OVERTAKEN):
        if world.placed_at(big.id) is not None:
            break
        if len(world.waiting) < 20:
            count += 1
            world.arrives(small(count, rng))
        world.one_ends()
    assert world.placed_at(big.id) is not None
    assert world.passed_by <= MAX_OVERTAKEN + 20, "one pass may place several at once"
    while world.waiting or world.running:
        world.one_ends()
    view = world.fleet.view(max_inflight=1)
    for side in (view.prefill, view.decode):
        assert not side.tok.any()
        assert not side.store_queue.any()
        assert (side.loadable == side.load_limit).all() or side is view.decode
        assert (side.free == side.pool).all() or side is view.prefill


def small(i: int, rng: random.Random) -> TurnView:
    pages = rng.randrange(1, 40)
    return turn(i, pages, pages * PAGE + 1)


class _World:
    """A queue before a fleet: each event is followed by a pass, as in the router."""

    def __init__(self, policy: Policy, fleet: Fleet, rng: random.Random) -> None:
        self.fleet = fleet
        self.waiting: dict[RequestId, TurnView] = {}
        self.running: list[RequestId] = []
        self.order: list[RequestId] = []
        self.passed_by = 0
        self._policy, self._rng = policy, rng

    def arrives(self, one: TurnView) -> None:
        self.waiting[one.id] = one
        self._pass()

    def one_ends(self) -> None:
        if self.running:
            ended = self.running.pop(self._rng.randrange(len(self.running)))
            self.fleet.loaded(ended)
            self.fleet.end(ended, clean=True)
        self._pass()

    def placed_at(self, id: RequestId) -> int | None:
        return self.order.index(id) if id in self.order else None

    def _pass(self) -> None:
        view = self.fleet.view(max_inflight=10**6, split_policy="auto")
        for decision in self._policy(view, list(self.waiting.values()), 0.0, self._rng):
            assert not isinstance(decision, Refused)
            if isinstance(decision, Placed):
                self.fleet.place(decision, self.waiting.pop(decision.id))
                self.running.append(decision.id)
                self.order.append(decision.id)
            else:
                old = self.waiting[decision.id]
                self.waiting[decision.id] = replace(
                    old, group=decision.group, overtaken=decision.overtaken
                )
                if old.prompt_tokens == 1100:
                    self.passed_by = decision.overtaken


def test_a_report_that_is_overdue_is_no_idle_engine() -> None:
    """p1 has less to do, but nobody has heard of it for half a minute."""
    busy = Engine("p0", "prefill", work=50, compute_rate=100.0)
    engines = [busy, Engine("p1", "prefill", compute_rate=100.0), Engine("d0", "decode")]
    fleet = fleet_of(*engines)
    for engine in (busy, engines[2]):
        fleet.report(engine.rank, report_of(engine, 1), 30.0)
    view = fleet.view(max_inflight=9, split_policy="auto")
    fresh = POLICIES["dualpath"](view, [turn(0, 1, 100)], 0.5, random.Random(0))
    stale = POLICIES["dualpath"](view, [turn(0, 1, 100)], 30.5, random.Random(0))
    assert [d.prefill for d in (*fresh, *stale) if isinstance(d, Placed)] == ["p1", "p0"]
