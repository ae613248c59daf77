"""The paper's scheduler on cases worked out by hand (paper, section 6.1; alpha 50, beta 100)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clusters import RNG, Engine, turn, view_of

from agent_runtime.scheduling.paper import paper
from agent_runtime.scheduling.passes import MAX_OVERTAKEN
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Waiting
from agent_runtime.scheduling.profile import Profile
from agent_runtime.scheduling.view import TurnView

PROFILE = Profile(alpha_tokens=50, beta_tokens=100)
WIDE = Profile(alpha_tokens=50, beta_tokens=10**6)
P0 = Engine("p0", "prefill")
D0 = Engine("d0", "decode")


def schedule(engines: Sequence[Engine], turns: Sequence[TurnView], **more: Any) -> list[Decision]:
    more = {"split_policy": "auto", "profile": PROFILE, **more}
    return paper(view_of(*engines, **more), turns, 0.0, RNG)


def of_length(*lengths: int, **more: Any) -> list[TurnView]:
    return [turn(i, 0, length, **more) for i, length in enumerate(lengths)]


def prefills(decisions: Sequence[Decision]) -> list[str]:
    return [d.prefill if isinstance(d, Placed) else type(d).__name__ for d in decisions]


def decodes(decisions: Sequence[Decision]) -> list[str]:
    return [d.decode if isinstance(d, Placed) else type(d).__name__ for d in decisions]


def test_algorithm_1() -> None:
    """C1 = {p0}, C2 = {p1, p3}, C3 = {p2}; a queue of just alpha is short, tok_e of just beta too.

    30 -> p3 (70 < 90)        p3 100
    30 -> p1 (90 < 100)       p1 120, C1
    30 -> p3                  p3 130, C1
    30 -> p2 (C2 is empty)    p2 70, then 100, then 130, C1
    """
    engines = [
        Engine("p0", "prefill", tok=120),
        Engine("p1", "prefill", tok=90, store_queue=10),
        Engine("p2", "prefill", tok=40, store_queue=51),
        Engine("p3", "prefill", tok=70, store_queue=50),
        D0,
    ]
    decisions = schedule(engines, of_length(*[30] * 8))
    assert prefills(decisions) == ["p3", "p1", "p3", "p2", "p2", "p2", "Waiting", "Waiting"]
    assert "fewest tokens in C2" in decisions[0].reason
    assert "fewest tokens in C3" in decisions[3].reason
    assert decisions[7].reason == "no prefill engine is outside C1"


def test_the_reading_queue_is_that_of_the_node() -> None:
    """p0 and p1 read with one NIC: 30 + 30 > alpha, so p2 is preferred with all its tokens."""
    engines = [
        Engine("p0", "prefill", node="a", tok=0, store_queue=30),
        Engine("p1", "prefill", node="a", tok=0, store_queue=30),
        Engine("p2", "prefill", node="b", tok=99, store_queue=50),
        D0,
    ]
    assert prefills(schedule(engines, of_length(10))) == ["p2"]


def test_low_token_engines_by_their_requests() -> None:
    """Z = 1.05 * (60 + 450) / 3 = 178.5: d0 (160) and d2 (170) are low, d1 (300) is not."""
    engines = [
        P0,
        Engine("d0", "decode", node="n", tok=100, seq=5),
        Engine("d1", "decode", node="n", tok=240, seq=1),
        Engine("d2", "decode", node="n", tok=110, seq=3),
    ]
    (decision,) = schedule(engines, of_length(60))
    assert decodes([decision]) == ["d2"]
    assert "fewest requests of those below Z=178" in decision.reason


def test_without_a_low_token_engine_by_their_tokens() -> None:
    """Z = 1.05 * (300 + 450) / 3 = 262.5, and 100 + 300 is more."""
    engines = [
        P0,
        Engine("d0", "decode", node="n", tok=100, seq=5),
        Engine("d1", "decode", node="n", tok=240, seq=1),
        Engine("d2", "decode", node="n", tok=110, seq=3),
    ]
    (decision,) = schedule(engines, of_length(300))
    assert decodes([decision]) == ["d0"]
    assert "all above Z=262" in decision.reason


def test_z_is_made_once_and_loads_after_each_assignment() -> None:
    """Z = 1.05 * (180 + 0) / 2 = 94.5. d0, d1 by seq; then both have 60, 120 > Z: fewest tokens."""
    engines = [
        P0,
        Engine("d0", "decode", node="n"),
        Engine("d1", "decode", node="n", seq=1),
    ]
    decisions = schedule(engines, of_length(60, 60, 60), profile=WIDE)
    assert decodes(decisions) == ["d0", "d1", "d0"]
    assert "above Z=94" in decisions[2].reason


def test_z_counts_what_would_fit_into_all_free_memory() -> None:
    """150 free: R is the first two, Z = 1.05 * (120 + 30) / 1 = 157.5; both are below it."""
    engines = [P0, Engine("d0", "decode", tok=30, free=150)]
    decisions = schedule(engines, of_length(60, 60, 60), profile=WIDE)
    assert decodes(decisions) == ["d0", "d0", "Waiting"]
    assert "below Z=158" in decisions[1].reason


def test_only_engines_with_enough_memory_and_else_the_fetch_ends() -> None:
    """d0 has the fewest requests but no memory. The 80 does not fit, so the 10 behind it waits."""
    engines = [
        P0,
        Engine("d0", "decode", node="n", seq=0, free=40),
        Engine("d1", "decode", node="n", seq=9, free=110),
    ]
    decisions = schedule(engines, of_length(50, 80, 10))
    assert decodes(decisions) == ["d1", "Waiting", "Waiting"]
    assert isinstance(decisions[1], Waiting)
    assert decisions[1].group == decisions[2].group is not None  # type: ignore[union-attr]


def test_across_groups_by_the_sum_of_tokens() -> None:
    """a: 100 + 300, b: 350. 60 -> b (410), 60 -> a (460), 60 -> b; each then its own rule."""
    engines = [
        P0,
        Engine("a0", "decode", node="a", tok=100),
        Engine("a1", "decode", node="a", tok=300),
        Engine("b0", "decode", node="b", tok=350),
    ]
    decisions = schedule(engines, of_length(30, 60, 60))
    assert decodes(decisions) == ["b0", "b0", "a0"], "350 + 30 < 400; 380 + 60 > 400; then a"


def test_a_full_group_holds_its_turn_and_no_prefill_engine() -> None:
    """The first is in the queue of a, which is full; the second goes to b. One overtakes it."""
    engines = [
        P0,
        Engine("a0", "decode", node="a", free=40),
        Engine("b0", "decode", node="b", tok=20),
    ]
    decisions = schedule(engines, of_length(50, 30))
    assert decodes(decisions) == ["Waiting", "b0"]
    first = decisions[0]
    assert isinstance(first, Waiting)
    assert (first.group, first.overtaken) == (1, 1)
    again = schedule(engines, [turn(0, 0, 50, group=first.group, overtaken=1)])
    assert decodes(again) == ["Waiting"], "it stays in its queue"


def test_a_turn_that_was_overtaken_too_often_may_change_its_group() -> None:
    engines = [
        P0,
        Engine("a0", "decode", node="a", free=40),
        Engine("b0", "decode", node="b", tok=20),
    ]
    late = turn(0, 0, 50, group=1, overtaken=MAX_OVERTAKEN)
    assert decodes(schedule(engines, [late, *of_length(1)])) == ["b0", "a0"]
    full = [P0, Engine("a0", "decode", node="a", free=40), Engine("b0", "decode", free=45)]
    decisions = schedule(full, [late, turn(1, 0, 10)])
    assert decodes(decisions) == ["Waiting", "Waiting"], "and else nobody passes it"


def test_the_order_of_arrival_holds_on_p() -> None:
    """The first has no room on any P; nobody passes it, though the second would fit."""
    engines = [Engine("p0", "prefill", loadable=100), D0]
    decisions = schedule(engines, [turn(0, 10, 200), turn(1, 1, 20)])
    assert prefills(decisions) == ["Waiting", "Waiting"]


def test_a_fetch_is_of_its_own_group() -> None:
    engines = [
        Engine("p0", "prefill", node="a", tok=10),
        Engine("p1", "prefill", node="b", tok=20),
        Engine("d0", "decode", node="c"),
        Engine("d1", "decode", node="d", tok=30),
    ]
    assert prefills(schedule(engines, of_length(5))) == ["p0"]
    assert prefills(schedule(engines, of_length(5), fetching=1)) == ["p1"]
    assert decodes(schedule(engines, of_length(40, 5), fetching=2)) == ["d0", "Waiting"]
    assert decodes(schedule(engines, of_length(40, 5), fetching=3)) == ["Waiting", "d1"]


def test_the_side_with_the_shorter_reading_queue_reads_all() -> None:
    def split(p: int, d: int, **more: Any) -> int | None:
        engines = [
            Engine("p0", "prefill", store_queue=p),
            Engine("d0", "decode", store_queue=d, **more),
        ]
        (placed,) = schedule(engines, [turn(0, 5, 90)])
        assert isinstance(placed, Placed)
        return placed.split

    assert split(30, 20) == 5
    assert split(20, 30) == 0
    assert split(20, 20) == 0, "equal queues: P reads"
    assert split(30, 20, loadable=16) == 1, "D stages what it has room for"


def test_one_that_fits_no_engine_is_refused_at_once() -> None:
    engines = [Engine("p0", "prefill", pool=65), Engine("d0", "decode", free=10, pool=70)]
    turns = [turn(0, 0, 60, output_tokens=11), turn(1, 0, 66), turn(2, 0, 60)]
    large_output, large_prompt, fits = schedule(engines, turns)
    assert isinstance(large_output, Refused)
    assert "engine that decodes has 70" in large_output.reason
    assert isinstance(large_prompt, Refused)
    assert "prefill engine has 65" in large_prompt.reason
    assert isinstance(fits, Waiting)
