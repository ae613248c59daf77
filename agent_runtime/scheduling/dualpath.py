"""The pair of engines with the least predicted time to the first token.

    P  outside C1 (tok_e <= beta), with room ─┐
                                              ├─▶ predict the pairs ─▶ least, then tok_e, then id
    D  with room ─────────────────────────────┘

In a small fleet all pairs are predicted, in a large one those of `candidates`. Predictions that
differ by less than they are worth count as equal: then the decode engine wins that the prefix was
staged on, then the engines with fewer tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from agent_runtime.scheduling.candidates import Candidates, open_for
from agent_runtime.scheduling.passes import Choice, Pass, Wait, run
from agent_runtime.scheduling.paths import choose_path
from agent_runtime.scheduling.placement import Decision, Score
from agent_runtime.scheduling.predict import decode_offer, prefill_offer, ttft_with_each
from agent_runtime.scheduling.shortlist import good_enough
from agent_runtime.scheduling.view import ClusterView, TurnView

ALTERNATIVES = 8

Scored = tuple[float, float, int, int]
"""Of a pair: ttft in seconds, tokens of both engines, row of P, row of D."""


def dualpath(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    return run(view, waiting, now, _LeastTtft(waiting))


def all_scores(view: ClusterView, turn: TurnView, now: float) -> list[Score]:
    """Every pair that could take the turn now, best first: to explain a placement. It takes about
    a microsecond per pair."""
    state = Pass(view, now)
    if state.is_plain or state.missing:
        return []
    scored: list[Scored] = []
    for namespace in state.namespaces:
        marked = state.pairable(*open_for(state, turn), namespace)
        p_rows, d_rows = (np.flatnonzero(flags).tolist() for flags in marked)
        scored += _pairs(state, turn, p_rows, d_rows)
    return [_score(state, one) for one in sorted(scored)]


class _LeastTtft:
    """One pass."""

    def __init__(self, waiting: Sequence[TurnView]) -> None:
        self._waiting = waiting
        self._candidates: list[Candidates] = []
        self._placed: tuple[int, int] | None = None

    def pair(self, state: Pass, turn: TurnView) -> Choice | Wait:
        if not self._candidates:
            self._candidates = [Candidates(state, self._waiting, n) for n in state.namespaces]
        if self._placed is not None:
            for candidates in self._candidates:
                candidates.placed(*self._placed)
            self._placed = None
        scored: list[Scored] = []
        for candidates in self._candidates:
            scored += _pairs(state, turn, *candidates.of(turn))
        if not scored:
            return Wait(_why(state, turn))
        choice = _choice(state, turn, scored)
        self._placed = choice.prefill, choice.decode
        return choice

    def plain(self, state: Pass, turn: TurnView) -> Choice | Wait:
        marked = state.plain.with_room(turn)
        if not marked.any():
            return Wait(state.no_room(turn))
        i = state.plain.least_busy(marked)
        return Choice(i, i, None, f"fewest tokens: {state.plain.tok[i]:.0f}")


def _choice(state: Pass, turn: TurnView, scored: list[Scored]) -> Choice:
    scored.sort()
    equal = good_enough(scored[0][0])
    best = min((one for one in scored if one[0] <= equal), key=_fewest_tokens)
    if turn.staged is not None:
        staged = state.decode.side.index.get(turn.staged)
        there = [one for one in scored if one[0] <= equal and one[3] == staged]
        best = min(there, key=_fewest_tokens, default=best)
    ttft, _, p, d = best
    k, words = choose_path(state, turn, p, d, default="best")
    shown = [best, *(one for one in scored[:ALTERNATIVES] if one is not best)][:ALTERNATIVES]
    reason = f"least predicted TTFT of {len(scored)} pairs: {ttft:.3f} s; {words}"
    return Choice(p, d, k, reason, tuple(_score(state, one) for one in shown))


def _fewest_tokens(scored: Scored) -> tuple[float, int, int]:
    return scored[1:]


def _why(state: Pass, turn: TurnView) -> str:
    """Why there is no pair."""
    prefills, _ = open_for(state, turn)
    if prefills.any() or not state.prefill.with_room(turn).any():
        return state.no_room(turn)
    beta = state.view.profile.beta_tokens
    return f"all prefill engines with room have more than {beta:.0f} tokens to do (C1)"


def _pairs(state: Pass, turn: TurnView, p_rows: list[int], d_rows: list[int]) -> list[Scored]:
    n = turn.cached_pages or 0
    decodes = [decode_offer(state, turn, i) for i in d_rows]
    scored: list[Scored] = []
    for i in p_rows:
        p = prefill_offer(state, turn, i)
        for seconds, d in zip(ttft_with_each(n, p, decodes), decodes, strict=True):
            scored.append((seconds, p.tok + d.tok, i, d.row))
    return scored


def _score(state: Pass, scored: Scored) -> Score:
    ttft, _, p, d = scored
    return Score(state.prefill.side.ranks[p], state.decode.side.ranks[d], ttft)
