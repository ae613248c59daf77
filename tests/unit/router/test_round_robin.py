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


def engines(role: Role, healthy: Sequence[bool]) -> tuple[EngineView, ...]:
    return tuple(EngineView(EngineId(f"{role}{i}"), role, up) for i, up in enumerate(healthy))


@st.composite
def fleets(draw: st.DrawFn) -> tuple[EngineView, ...]:
    """Prefill and decode engines, or plain ones, some of them away, in a mixed order."""
    states = st.lists(st.booleans(), min_size=1, max_size=4)
    if draw(st.booleans()):
        return engines("plain", draw(states))
    both = engines("prefill", draw(states)) + engines("decode", draw(states))
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
    up = {engine.id for engine in view.engines if engine.healthy}
    plain = "plain" in role_of.values()
    placed = [d for d in decisions if isinstance(d, Placed)]
    for one in placed:
        assert {one.prefill, one.decode} <= up
        roles = (role_of[one.prefill], role_of[one.decode])
        assert roles == (("plain", "plain") if plain else ("prefill", "decode"))
    assert len(placed) <= max(0, view.max_inflight - view.inflight)
    served = {role_of[name] for name in up}
    if served >= ({"plain"} if plain else {"prefill", "decode"}):
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
