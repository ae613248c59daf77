"""Scaling rules as invariants, and the filters."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.scale import Filters, scale, select
from benchmarks.replay.trace import Session, TraceError, Turn
from dualpath_sglang.contract.errors import ConfigError


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 8))):
        context = turns[-1].context if turns else 0
        keep = context if draw(st.booleans()) else draw(st.integers(0, context))
        append = draw(st.integers(0 if keep else 1, 5000))
        out = draw(st.integers(0, 500))
        out_kept = out if draw(st.booleans()) else draw(st.integers(0, out))
        turns.append(Turn(keep, append, out, out_kept, None))
    return Session("d", "s", tuple(turns), draw(st.sampled_from([None, 1, 64])), "x")


factors = st.floats(0.001, 4)


def scaled(tokens: int, factor: float) -> int:
    return max(1, round(tokens * factor)) if tokens else 0


@given(sessions(), factors)
def test_every_size_follows_its_rule(session: Session, factor: float) -> None:
    made = scale(session, factor)
    before = after = 0
    for old, new in zip(session.turns, made.turns, strict=True):
        assert new.append == scaled(old.append, factor)
        assert new.out == scaled(old.out, factor)
        assert new.out_kept <= new.out
        assert new.prompt > 0
        if old.out_kept == old.out:
            assert new.out_kept == new.out
        if old.keep == before:
            assert new.keep == after
        else:
            least = 0 if new.append else 1
            assert new.keep == max(least, min(after, round(old.keep * factor)))
        before, after = old.context, new.context
        assert after == new.keep + new.append + new.out_kept
    assert (made.block, made.factor) == (session.block, factor)


@given(sessions(), factors)
def test_an_append_only_session_stays_one(session: Session, factor: float) -> None:
    turns: list[Turn] = []
    for turn in session.turns:
        keep = turns[-1].context if turns else 0
        turns.append(replace(turn, keep=keep, append=max(1, turn.append), out_kept=turn.out))
    made = scale(replace(session, turns=tuple(turns)), factor)
    total = sum(turn.append + turn.out for turn in made.turns)
    assert made.turns[-1].context == total


@given(sessions())
def test_factor_one_changes_nothing(session: Session) -> None:
    assert scale(session, 1.0) == session


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_bad_factors(factor: float) -> None:
    with pytest.raises(ConfigError, match="scale must be"):
        scale(Session("d", "s", (Turn(0, 1, 1, 1),)), factor)


def chain(sid: str, turns: int) -> Session:
    return Session("d", sid, tuple(Turn(12 * i, 10, 2, 2) for i in range(turns)))


def test_filters() -> None:
    source = [chain("short", 2), chain("a", 5), chain("b", 6), chain("c", 7)]
    filters = Filters(sessions=2, turns=4, min_turns=3, max_context=36)
    taken = list(select(source, 1.0, filters))
    assert [(s.sid, len(s.turns)) for s in taken] == [("a", 3), ("b", 3)]


def test_selection_from_an_endless_source_ends() -> None:
    endless = (chain(str(i), 3) for i in count())
    assert len(list(select(endless, 1.0, Filters(sessions=5)))) == 5
    with pytest.raises(TraceError, match="no session passes"):
        list(select((chain(str(i), 3) for i in count()), 1.0, Filters(sessions=1, min_turns=4)))


@pytest.mark.parametrize("name", ["sessions", "turns", "min_turns", "max_context"])
def test_filters_refuse_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Filters(**{name: 0})
