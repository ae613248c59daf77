"""Generated sessions have the published means and are always the same."""

from __future__ import annotations

from itertools import islice
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.generator import SHAPES, generate, spread
from benchmarks.replay.sources import open_generator
from benchmarks.replay.trace import TraceError


@pytest.mark.parametrize("name", list(SHAPES))
def test_means_are_those_of_the_paper(name: str) -> None:
    shape = SHAPES[name]
    sessions = list(islice(generate(name, seed=3), 2000))

    def per_session(value: str) -> float:
        return mean(mean(getattr(turn, value) for turn in s.turns) for s in sessions)

    assert mean(len(s.turns) for s in sessions) == pytest.approx(shape.turns, rel=0.05)
    assert per_session("append") == pytest.approx(shape.append, rel=0.05)
    assert per_session("out") == pytest.approx(shape.generated, rel=0.05)
    assert per_session("keep") == pytest.approx(shape.context, rel=0.05)
    assert mean(s.turns[-1].context for s in sessions) == pytest.approx(shape.total, rel=0.02)
    assert max(s.turns[-1].context for s in sessions) <= shape.max_len


def test_sessions_are_append_only_chains() -> None:
    for session in islice(generate("32k", seed=0), 50):
        context = 0
        for turn in session.turns:
            assert turn.keep == context
            assert turn.append >= 1
            assert turn.out == turn.out_kept >= 1
            context = turn.context


def test_the_same_seed_gives_the_same_sessions() -> None:
    first = list(islice(generate("32k", seed=7), 5))
    assert first == list(islice(generate("32k", seed=7), 5))
    assert first != list(islice(generate("32k", seed=8), 5))
    sizes = [(turn.append, turn.out) for turn in first[0].turns[:4]]
    assert sizes == GOLDEN, "the generator changed: old results can no longer be repeated"


GOLDEN = [(7080, 234), (606, 53), (238, 90), (302, 162)]


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(TraceError, match="32k, 48k, 64k"):
        open_generator("16k", 0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50), st.integers(0, 10_000))
def test_spread_conserves_the_total(weights: list[float], spare: int) -> None:
    total = len(weights) + spare
    parts = spread(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1
