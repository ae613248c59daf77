"""Which engines are worth predicting for a turn: the best of each role, and those with its pages.

    D list      by when D would have read half of the prefix
    P list      by the first token with the best of these D
    pulling     P by the first token with a D that holds all of the prefix: P's storage queue does
                not matter there, so these are other engines

The lists are made once for a pass, for a turn like those that wait are on the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.predict import (
    DecodeOffer,
    decode_offer,
    each_half_read,
    half_read,
    holder_of_all,
    prefill_offer,
    ttft_of_each_prefill,
    ttft_seconds,
)
from agent_runtime.scheduling.room import kv_tokens, load_tokens
from agent_runtime.scheduling.shortlist import Shortlist
from agent_runtime.scheduling.view import Flags, Rank, Side, TurnView
from dualpath_sglang.contract.ids import RequestId

WIDTH = 3
"""Engines of a list that are looked at for one turn."""
PULLING = 2

Rows = list[int]
Fits = Callable[[int], bool]


class Candidates:
    """Of one namespace, for the turns of one pass."""

    def __init__(self, state: Pass, waiting: Sequence[TurnView], namespace: int) -> None:
        self._state, self._namespace = state, namespace
        self._all = state.pairable(outside_c1(state), state.decode.open, namespace)
        load, kv = min(map(load_tokens, waiting)), min(map(kv_tokens, waiting))
        prefill, decode = state.prefill, state.decode
        has_room = np.minimum(load, prefill.side.load_limit) <= prefill.loadable
        marked = self._all[0] & has_room, self._all[1] & (decode.free >= kv)
        self._lists = _Lists(state, _typical(waiting), *marked, WIDTH + len(waiting))

    def of(self, turn: TurnView) -> tuple[Rows, Rows]:
        """Rows of prefill and of decode engines with room for the turn; both or none are empty."""
        state, lists = self._state, self._lists
        beta, prefill, decode = state.view.profile.beta_tokens, state.prefill, state.decode

        def p_fits(i: int) -> bool:
            return bool(prefill.tok[i] <= beta) and prefill.fits(i, turn)

        def d_fits(i: int) -> bool:
            return decode.fits(i, turn)

        p_rows, d_rows = lists.prefill.first(WIDTH, p_fits), lists.decode.first(WIDTH, d_fits)
        if not (p_rows and d_rows):  # room is scarce: look at all of them
            marked = state.pairable(*open_for(state, turn), self._namespace)
            if not (marked[0].any() and marked[1].any()):
                return [], []
            lists = _Lists(state, turn, *marked, WIDTH)
            p_rows, d_rows = lists.prefill.rows, lists.decode.rows
        if turn.staged is not None and turn.staged not in turn.held:
            _add(d_rows, _marked(decode.side, [turn.staged], self._all[1]), d_fits)
        if turn.held:
            few = len(d_rows)
            _add(d_rows, _marked(decode.side, turn.held, self._all[1]), d_fits)
            if len(d_rows) > few:
                _add(p_rows, lists.pulling.first(PULLING, p_fits), p_fits)
            _add(p_rows, _marked(prefill.side, turn.held, self._all[0]), p_fits)
        return p_rows, d_rows

    def placed(self, p: int, d: int) -> None:
        """A turn was put on these engines: they have their place behind others by now."""
        self._lists.move(p, d)


class _Lists:
    def __init__(
        self, state: Pass, turn: TurnView, prefills: Flags, decodes: Flags, size: int
    ) -> None:
        self._state, self._turn, self._n = state, turn, turn.cached_pages or 0
        self._prefills, self._size = prefills, size
        self.decode = Shortlist(each_half_read(state, turn), state.decode.tok, decodes, size)
        self._best_d = decode_offer(state, turn, (self.decode.rows or [0])[0])
        self.prefill = self._prefill_with(self._best_d)
        self._pulling: Shortlist | None = None

    @property
    def pulling(self) -> Shortlist:
        if self._pulling is None:
            self._pulling = self._prefill_with(holder_of_all(self._n))
        return self._pulling

    def move(self, p: int, d: int) -> None:
        state, n = self._state, self._n
        p_offer, d_offer = prefill_offer(state, self._turn, p), decode_offer(state, self._turn, d)
        self.prefill.move(p, ttft_seconds(n, p_offer, self._best_d), p_offer.tok)
        if self._pulling is not None:
            self._pulling.move(p, ttft_seconds(n, p_offer, holder_of_all(n)), p_offer.tok)
        self.decode.move(d, half_read(n, d_offer), d_offer.tok)

    def _prefill_with(self, d: DecodeOffer) -> Shortlist:
        seconds = ttft_of_each_prefill(self._state, self._turn, d)
        return Shortlist(seconds, self._state.prefill.tok, self._prefills, self._size)


def outside_c1(state: Pass) -> Flags:
    """Prefill engines that are open and have no more than beta tokens to do."""
    rows = state.prefill
    mask: Flags = rows.open & (rows.tok <= state.view.profile.beta_tokens)
    return mask


def open_for(state: Pass, turn: TurnView) -> tuple[Flags, Flags]:
    """All engines that may get the turn: with room, and P outside C1."""
    return state.prefill.with_room(turn) & outside_c1(state), state.decode.with_room(turn)


def _typical(waiting: Sequence[TurnView]) -> TurnView:
    """As long as the waiting turns are on the average, with as much of it in the store."""
    page = max(turn.page_size for turn in waiting)
    tokens = sum(turn.prompt_tokens for turn in waiting) // len(waiting)
    pages = sum(map(load_tokens, waiting)) // len(waiting) // page if page else 0
    return TurnView(RequestId(""), tokens, tokens, 0.0, pages, page)


def _marked(side: Side, ranks: Iterable[Rank], marked: Flags) -> Rows:
    """Those of the ranks that are of this role and marked."""
    rows = [i for rank in ranks if (i := side.index.get(rank)) is not None]
    return [i for i in rows if marked[i]]


def _add(rows: Rows, more: Rows, fits: Fits) -> None:
    rows.extend(i for i in more if i not in rows and fits(i))
