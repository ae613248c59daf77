"""Round robin as a function: any fleet, any queue, any way to cut the queue into passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from clusters import RNG, Engine, pd, turn, view_of
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.config import Role
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.passes import advance
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Waiting
from agent_runtime.scheduling.view import ClusterView, TurnView


def engines(role: Role, up: Sequence[bool], namespaces: Sequence[str] = ("",)) -> list[Engine]:
    return [
        Engine(f"{role}{i}", role, is_up, namespace=namespaces[i % len(namespaces)])
        for i, is_up in enumerate(up)
    ]


@st.composite
def fleets(draw: st.DrawFn) -> list[Engine]:
    """Prefill and decode engines, or plain ones, some of them away, in a mixed order."""
    states = st.lists(st.booleans(), min_size=1, max_size=4)
    if draw(st.booleans()):
        return engines("plain", draw(states))
    names = st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=4)
    both = engines("prefill", draw(states), draw(names))
    both += engines("decode", draw(states), draw(names))
    return draw(st.permutations(both))


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    view = view_of(
        *draw(fleets()),
        reports=False,
        max_inflight=draw(st.integers(1, 9)),
        no_engine_wait_s=draw(st.sampled_from([0.0, 5.0])),
    )
    return replace(view, inflight=draw(st.integers(0, 9)))


queues = st.integers(0, 12).map(lambda n: [turn(i, None, 9) for i in range(n)])


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


@given(views(), queues, st.floats(0, 20))
def test_every_turn_gets_one_decision_that_the_fleet_allows(
    view: ClusterView, queue: list[TurnView], now: float
) -> None:
    decisions = round_robin(view, queue, now, RNG)
    assert decisions == round_robin(view, queue, now, RNG)
    assert [d.id for d in decisions] == [turn.id for turn in queue]
    plain = len(view.plain) > 0
    sides = (view.plain, view.plain) if plain else (view.prefill, view.decode)
    up = [
        {rank.engine: side.namespace[i] for rank, i in side.index.items() if side.up[i]}
        for side in sides
    ]
    placed = [d for d in decisions if isinstance(d, Placed)]
    for one in placed:
        assert up[0][one.prefill] == up[1][one.decode], "both are up, and of one namespace"
        assert (one.prefill == one.decode) == plain
    assert len(placed) <= max(0, view.max_inflight - view.inflight)
    if set(up[0].values()) & set(up[1].values()):
        assert not any(isinstance(d, Refused) for d in decisions)
    else:
        for one_turn, decision in zip(queue, decisions, strict=True):
            late = now - one_turn.arrived >= view.no_engine_wait_s
            assert isinstance(decision, Refused if late else Waiting)


@given(views(), queues, st.data())
def test_passes_do_not_matter(
    view: ClusterView, queue: list[TurnView], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(queue)), max_size=4)))
    in_many, in_one = passes(view, queue, cuts), passes(view, queue, [])
    assert in_many[1] == in_one[1]
    assert in_many[0].cursor == in_one[0].cursor


def test_every_pair_of_a_namespace_has_its_turn() -> None:
    fleet = engines("prefill", [True] * 2, "ab") + engines("decode", [True] * 3, "ab")
    queue = [turn(i, None, 1) for i in range(12)]
    placed = round_robin(view_of(*fleet, reports=False), queue, 0.0, RNG)
    pairs = Counter((d.prefill, d.decode) for d in placed if isinstance(d, Placed))
    expected = {("prefill0", "decode0"), ("prefill0", "decode2"), ("prefill1", "decode1")}
    assert pairs.keys() == expected


def test_a_turn_that_no_pair_can_serve_waits_and_says_why() -> None:
    fleet = engines("prefill", [True], ["aaaaaaaaaaaa"]) + engines("decode", [True], [""])
    view = view_of(*fleet, reports=False, no_engine_wait_s=5.0)
    (decision,) = round_robin(view, [turn()], 0.0, RNG)
    assert isinstance(decision, Waiting)
    assert decision.reason.endswith("'prefill0': aaaaaaaa, 'decode0': unknown")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_engines_of_a_role_get_equal_shares(prefill: int, decode: int, turns: int) -> None:
    queue = [turn(i, None, 1) for i in range(turns)]
    view = view_of(*pd(prefill, decode), reports=False)
    decisions = round_robin(view, queue, 0.0, RNG)
    placed = [d for d in decisions if isinstance(d, Placed)]
    assert len(placed) == turns
    prefills, decodes = Counter(p.prefill for p in placed), Counter(p.decode for p in placed)
    for side, counts in ((view.prefill, prefills), (view.decode, decodes)):
        shares = [counts[rank.engine] for rank in side.ranks]
        assert max(shares) - min(shares) <= 1
