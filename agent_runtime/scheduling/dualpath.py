"""The pair of engines with the least predicted time to the first token.

    P  outside C1 (tok_e <= beta), with room ─┐
                                              ├─▶ predict the pairs ─▶ least, then tok_e, then id
    D  with room ─────────────────────────────┘

Of each role the `WIDTH` best (shortlists, made once for a pass) are paired, and all that hold pages
of the turn; in a small fleet these are all engines. Predictions that differ by less than they are
worth count as equal, and the engines with fewer tokens win.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent_runtime.scheduling.passes import Choice, Pass, Wait, run
from agent_runtime.scheduling.paths import choose_path
from agent_runtime.scheduling.placement import Decision, Score
from agent_runtime.scheduling.predict import (
    decode_offer,
    each_decode,
    each_prefill,
    holder_of_all,
    prefill_offer,
    ttft_columns,
    ttft_seconds,
    ttft_with_each,
)
from agent_runtime.scheduling.room import load_tokens
from agent_runtime.scheduling.shortlist import Shortlist, good_enough, least
from agent_runtime.scheduling.view import ClusterView, Flags, Side, TurnView
from dualpath_sglang.contract.ids import RequestId

WIDTH = 3
ALTERNATIVES = 8

Scored = tuple[float, float, int, int]
"""Of a pair: ttft in seconds, tokens of both engines, row of P, row of D."""
Fits = Callable[[int], bool]


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
        prefills, decodes = state.pairable(*_open(state, turn), namespace)
        scored += _pairs(state, turn, _rows(prefills), _rows(decodes))
    return [_score(state, one) for one in sorted(scored)]


class _LeastTtft:
    """One pass. Its shortlists are made for a turn like those that wait, on the average."""

    def __init__(self, waiting: Sequence[TurnView]) -> None:
        self._typical = _typical(waiting)
        self._size = WIDTH + len(waiting)
        self._lists: dict[int, _Lists] = {}
        self._placed: tuple[int, int] | None = None

    def pair(self, state: Pass, turn: TurnView) -> Choice | Wait:
        if self._placed is not None:
            for lists in self._lists.values():
                lists.move(state, *self._placed)
            self._placed = None
        scored: list[Scored] = []
        for namespace in state.namespaces:
            if namespace not in self._lists:
                marked = state.pairable(state.prefill.open, state.decode.open, namespace)
                self._lists[namespace] = _Lists(state, self._typical, *marked, self._size)
            p_rows, d_rows = self._candidates(state, turn, namespace)
            scored += _pairs(state, turn, p_rows, d_rows)
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

    def _candidates(
        self, state: Pass, turn: TurnView, namespace: int
    ) -> tuple[list[int], list[int]]:
        """Rows of a namespace's prefill engines, and of the decode engines that go with them."""
        beta = state.view.profile.beta_tokens
        prefill, decode, lists = state.prefill, state.decode, self._lists[namespace]

        def p_fits(i: int) -> bool:
            return bool(prefill.tok[i] <= beta) and prefill.fits(i, turn)

        def d_fits(i: int) -> bool:
            return decode.fits(i, turn)

        p_rows, d_rows = lists.prefill.first(WIDTH, p_fits), lists.decode.first(WIDTH, d_fits)
        if not (p_rows and d_rows):  # room is scarce: look at all of them
            marked = state.pairable(*_open(state, turn), namespace)
            lists = _Lists(state, turn, *marked, WIDTH)
            p_rows, d_rows = lists.prefill.rows, lists.decode.rows
        if turn.held:
            few = len(d_rows)
            _add(d_rows, _holders(decode.side, turn, lists.decode.marked), d_fits)
            if len(d_rows) > few:
                _add(p_rows, lists.pulling.first(2, p_fits), p_fits)
            _add(p_rows, _holders(prefill.side, turn, lists.prefill.marked), p_fits)
        return p_rows, d_rows


class _Lists:
    """The best marked engines of both roles for one turn, each by the first token with the best one
    of the other role; pulling: prefill engines with a decode engine that holds all of the prefix,
    where P's storage queue does not matter."""

    def __init__(
        self, state: Pass, turn: TurnView, prefills: Flags, decodes: Flags, size: int
    ) -> None:
        self._turn, self._n = turn, turn.cached_pages or 0
        each_p, each_d = each_prefill(state, turn), each_decode(state, turn)
        p_tok, d_tok = state.prefill.tok, state.decode.tok
        ideal = ttft_columns(self._n, each_p, holder_of_all(self._n))
        self.pulling = Shortlist(ideal, p_tok, prefills, size)
        half_read: Any = each_d.read_none + each_d.per_page * (self._n / 2) + each_d.silence
        first_d = decode_offer(state, turn, least(half_read, decodes))
        with_d = ttft_columns(self._n, each_p, first_d)
        self._best_p = prefill_offer(state, turn, least(with_d, prefills))
        self.decode = Shortlist(ttft_columns(self._n, self._best_p, each_d), d_tok, decodes, size)
        self._best_d = decode_offer(state, turn, (self.decode.rows or [0])[0])
        with_d = ttft_columns(self._n, each_p, self._best_d)
        self.prefill = Shortlist(with_d, p_tok, prefills, size)

    def move(self, state: Pass, p: int, d: int) -> None:
        """A turn was put on `p` and `d`: they have their place behind others by now."""
        n = self._n
        p_offer, d_offer = prefill_offer(state, self._turn, p), decode_offer(state, self._turn, d)
        self.prefill.move(p, ttft_seconds(n, p_offer, self._best_d), p_offer.tok)
        self.pulling.move(p, ttft_seconds(n, p_offer, holder_of_all(n)), p_offer.tok)
        self.decode.move(d, ttft_seconds(n, self._best_p, d_offer), d_offer.tok)


def _typical(waiting: Sequence[TurnView]) -> TurnView:
    """As long as the waiting turns are on the average, with as much of it in the store."""
    count = max(1, len(waiting))
    page = max((turn.page_size for turn in waiting), default=0)
    tokens = sum(turn.prompt_tokens for turn in waiting) // count
    pages = sum(map(load_tokens, waiting)) // count // page if page else 0
    return TurnView(RequestId(""), tokens, tokens, 0.0, pages, page)


def _choice(state: Pass, turn: TurnView, scored: list[Scored]) -> Choice:
    scored.sort()
    equal = good_enough(scored[0][0])
    best = min((one for one in scored if one[0] <= equal), key=_fewest_tokens)
    ttft, _, p, d = best
    k, words = choose_path(state, turn, p, d, default="best")
    shown = [best, *(one for one in scored[:ALTERNATIVES] if one is not best)][:ALTERNATIVES]
    reason = f"least predicted TTFT of {len(scored)} pairs: {ttft:.3f} s; {words}"
    return Choice(p, d, k, reason, tuple(_score(state, one) for one in shown))


def _fewest_tokens(scored: Scored) -> tuple[float, int, int]:
    return scored[1:]


def _open(state: Pass, turn: TurnView) -> tuple[Flags, Flags]:
    """Engines that may get the turn: with room, and P not in C1."""
    beta = state.view.profile.beta_tokens
    prefills: Flags = state.prefill.with_room(turn) & (state.prefill.tok <= beta)
    return prefills, state.decode.with_room(turn)


def _why(state: Pass, turn: TurnView) -> str:
    """Why there is no pair."""
    prefills, _ = _open(state, turn)
    if prefills.any() or not state.prefill.with_room(turn).any():
        return state.no_room(turn)
    beta = state.view.profile.beta_tokens
    return f"all prefill engines with room have more than {beta:.0f} tokens to do (C1)"


def _holders(side: Side, turn: TurnView, marked: Flags) -> list[int]:
    """The marked engines that hold pages of the turn."""
    rows = [i for rank in turn.held if (i := side.index.get(rank)) is not None]
    return [i for i in rows if marked[i]]


def _add(rows: list[int], more: list[int], fits: Fits) -> None:
    rows.extend(i for i in more if i not in rows and fits(i))


def _pairs(state: Pass, turn: TurnView, p_rows: list[int], d_rows: list[int]) -> list[Scored]:
    n = turn.cached_pages or 0
    decodes = [decode_offer(state, turn, i) for i in d_rows]
    scored: list[Scored] = []
    for i in p_rows:
        p = prefill_offer(state, turn, i)
        for seconds, d in zip(ttft_with_each(n, p, decodes), decodes, strict=True):
            scored.append((seconds, p.tok + d.tok, i, d.row))
    return scored


def _rows(marked: Flags) -> list[int]:
    rows: list[int] = np.flatnonzero(marked).tolist()
    return rows


def _score(state: Pass, scored: Scored) -> Score:
    ttft, _, p, d = scored
    return Score(state.prefill.side.ranks[p], state.decode.side.ranks[d], ttft)
