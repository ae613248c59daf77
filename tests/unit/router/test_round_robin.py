"""Round robin as a function: any fleet, any queue, any way to cut the queue into passes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.config import Role
from agent_runtime.scheduling.baselines import advance, round_robin
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Waiting
from agent_runtime.scheduling.view import ClusterView, EngineView, TurnView
from dualpath_sglang.contract.ids import EngineId, RequestId

RNG = random.Random(0)


def engines(
    role: Role, healthy: Sequence[bool], namespaces: Sequence[str] = ("",)
) -> tuple[EngineView, ...]:
    return tuple(
        EngineView(EngineId(f"{role}{i}"), role, up, namespace=namespaces[i % len(namespaces)])
        for i, up in enumerate(healthy)
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[EngineView, ...]:
    """Prefill and decode engines, or plain ones, some of them away, in a mixed order."""
    states = st.lists(st.booleans(), min_size=1, max_size=4)
    if draw(st.booleans()):
        return engines("plain", draw(states))
    names = st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=4)
    both = engines("prefill", draw(states), draw(names))
    both += engines("decode", draw(states), draw(names))
    return tuple(draw(st.permutations(both)))


views = st.builds(
    ClusterView, fleets(), st.integers(0, 9), st.integers(1, 9), st.sampled_from([0.0, 5.0])
)
queues = st.integers(0, 12).map(
    lambda n: [TurnView(RequestId(f"{i}"), 9, 9, arrived=float(i)) for i in range(n)]
)


def passes(
    view: ClusterView, queue: Sequence[TurnView], cuts: Sequence[int]
) -> tuple[ClusterView, list[Decision]]:
    """The queue in several passes, each decision applied as the owner of the state does."""
    decisions: list[Decision] = []
    for start, end in zip([0, *cuts], [*cuts, len(queue)], strict=True):
        decisions += (made := round_robin(view, queue[start:end], 0.0, RNG))
        for placed in made:
            if isinstance(placed, Placed):
                cursor = advance(view.cursor, placed)
                view = replace(view, cursor=cursor, inflight=view.inflight + 1)
    return view, decisions


@given(views, queues, st.floats(0, 20))
def test_every_turn_gets_one_decision_that_the_fleet_allows(
    view: ClusterView, queue: list[TurnView], now: float
) -> None:
    decisions = round_robin(view, queue, now, RNG)
    assert decisions == round_robin(view, queue, now, RNG)
    assert [d.id for d in decisions] == [turn.id for turn in queue]
    role_of = {engine.id: engine.role for engine in view.engines}
    pages = {engine.id: engine.namespace for engine in view.engines}
    up = {engine.id for engine in view.engines if engine.healthy}
    plain = "plain" in role_of.values()
    placed = [d for d in decisions if isinstance(d, Placed)]
    for one in placed:
        assert {one.prefill, one.decode} <= up
        assert pages[one.prefill] == pages[one.decode]
        roles = (role_of[one.prefill], role_of[one.decode])
        assert roles == (("plain", "plain") if plain else ("prefill", "decode"))
    assert len(placed) <= max(0, view.max_inflight - view.inflight)
    of_role = {role: {pages[n] for n in up if role_of[n] == role} for role in role_of.values()}
    sides = of_role.values()
    if set.intersection(*sides) if plain or len(sides) == 2 else False:
        assert not any(isinstance(d, Refused) for d in decisions)
    else:
        for turn, decision in zip(queue, decisions, strict=True):
            late = now - turn.arrived >= view.no_engine_wait_s
            assert isinstance(decision, Refused if late else Waiting)


@given(views, queues, st.data())
def test_passes_do_not_matter(
    view: ClusterView, queue: list[TurnView], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(queue)), max_size=4)))
    assert passes(view, queue, cuts) == passes(view, queue, [])


def test_every_pair_of_a_namespace_has_its_turn() -> None:
    fleet = engines("prefill", [True] * 2, "ab") + engines("decode", [True] * 3, "ab")
    queue = [TurnView(RequestId(f"{i}"), 1, 1, 0.0) for i in range(12)]
    placed = round_robin(ClusterView(fleet, 0, 1000), queue, 0.0, RNG)
    pairs = Counter((d.prefill, d.decode) for d in placed if isinstance(d, Placed))
    expected = {("prefill0", "decode0"), ("prefill0", "decode2"), ("prefill1", "decode1")}
    assert pairs.keys() == expected


def test_a_turn_that_no_pair_can_serve_waits_and_says_why() -> None:
    fleet = engines("prefill", [True], ["aaaaaaaaaaaa"]) + engines("decode", [True], [""])
    (decision,) = round_robin(
        ClusterView(fleet, 0, 9, no_engine_wait_s=5.0),
        [TurnView(RequestId("1"), 1, 1, 0.0)],
        0.0,
        RNG,
    )
    assert isinstance(decision, Waiting)
    assert decision.reason.endswith("'prefill0': aaaaaaaa, 'decode0': unknown")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_engines_of_a_role_get_equal_shares(prefill: int, decode: int, turns: int) -> None:
    fleet = engines("prefill", [True] * prefill) + engines("decode", [True] * decode)
    queue = [TurnView(RequestId(f"{i}"), 1, 1, 0.0) for i in range(turns)]
    decisions = round_robin(ClusterView(fleet, 0, 1000), queue, 0.0, RNG)
    placed = [d for d in decisions if isinstance(d, Placed)]
    assert len(placed) == turns
    prefills, decodes = Counter(p.prefill for p in placed), Counter(p.decode for p in placed)
    for role, counts in (("prefill", prefills), ("decode", decodes)):
        shares = [counts[engine.id] for engine in fleet if engine.role == role]
        assert max(shares) - min(shares) <= 1
