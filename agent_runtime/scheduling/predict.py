"""When a turn's first token would come from a pair of engines, from now on.

    load      the slowest of P's read, D's read and the pull, at the best split
    backlog   what P has to compute before it
    compute   its own new tokens

    ttft = max(load, backlog) + compute + silence

A load and the backlog go on at the same time; the turn is computed when both are done. `silence`:
for how long an engine's report is overdue; one that stands still may need as long again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.view import Amounts, TurnView


class PrefillOffer(NamedTuple):
    """One prefill engine for one turn; seconds unless said otherwise.

    tok: its tokens. plans: it takes plans. p: leading pages in its memory. read_all: until it
    would have read pages [0, n) itself, per_page: one of them. pull_none, pull_page: until it
    would have pulled up to page 0, and a page.
    """

    row: int
    tok: float
    plans: bool
    p: int
    read_all: float
    per_page: float
    pull_none: float
    pull_page: float
    backlog: float
    compute: float
    silence: float


class DecodeOffer(NamedTuple):
    """One decode engine for one turn. d: leading pages in its memory. read_none, per_page: until
    it would have read up to page 0, and a page. most: the largest k that it has room for."""

    row: int
    tok: float
    plans: bool
    d: int
    read_none: float
    per_page: float
    most: int
    silence: float


def prefill_offer(state: Pass, turn: TurnView, i: int) -> PrefillOffer:
    rows, side = state.prefill, state.prefill.side
    n, page = turn.cached_pages or 0, turn.page_size
    p = state.held(turn, side, i)
    store_rate, peer_rate = float(side.store_rate[i]), float(side.peer_rate[i])
    compute_rate = float(side.compute_rate[i])
    known = (p if p > n else n) * page
    computes = turn.prompt_tokens - known if turn.prompt_tokens > known else 1
    pull_none = (float(rows.peer_queue[i]) - p * page) / peer_rate
    return PrefillOffer(
        i,
        float(rows.tok[i]),
        bool(side.plans[i]),
        p,
        (float(rows.store_queue[i]) + n * page) / store_rate,
        page / store_rate,
        pull_none + state.view.profile.pull_fixed_s,
        page / peer_rate,
        float(rows.work[i]) / compute_rate,
        computes / compute_rate,
        float(state.silence[0][i]),
    )


def decode_offer(state: Pass, turn: TurnView, i: int) -> DecodeOffer:
    rows, side, page = state.decode, state.decode.side, turn.page_size
    d = state.held(turn, side, i)
    store_rate = float(side.store_rate[i])
    return DecodeOffer(
        i,
        float(rows.tok[i]),
        bool(side.plans[i]),
        d,
        (float(rows.store_queue[i]) - d * page) / store_rate,
        page / store_rate,
        rows.most_pages(i, turn, d),
        float(state.silence[1][i]),
    )


def ttft_seconds(n: int, p: PrefillOffer, d: DecodeOffer) -> float:
    """Until the first token of a turn with `n` pages in the store."""
    return ttft_with_each(n, p, (d,))[0]


def ttft_with_each(n: int, p: PrefillOffer, decodes: Sequence[DecodeOffer]) -> list[float]:
    """`ttft_seconds` of `p` with each of the decode engines.

    The load is `split.load_seconds` at the best split, to a page: k need not be a whole number
    here.
    """
    _, _, plans, held, read_all, per_page, pull_none, pull_page, backlog, compute, silent = p
    made: list[float] = []
    if n <= held:  # nothing to load
        ready = backlog + compute
        return [ready + (silent if silent > d.silence else d.silence) for d in decodes]
    alone = read_all - per_page * held
    # Where P's read takes as long as the pull; up to page p nothing is pulled.
    pulled = (read_all - pull_none) / (per_page + pull_page)
    pulled = pulled if pulled > held else held
    for _, _, d_plans, d_held, read_none, d_per_page, most, d_silent in decodes:
        # Where P's read takes as long as D's; up to page d nothing is read by D.
        k = (read_all - read_none) / (per_page + d_per_page)
        k = k if k > d_held else d_held
        k = k if k < pulled else pulled
        k = k if k < most else most
        if k <= held or not (plans and d_plans):  # D has nothing to supply
            seconds = alone
        else:
            seconds = pull_none + pull_page * k
            if k < n and (own := read_all - per_page * k) > seconds:
                seconds = own
            if k > d_held and (read := read_none + d_per_page * k) > seconds:
                seconds = read
        seconds = seconds if seconds > backlog else backlog
        made.append(seconds + compute + (silent if silent > d_silent else d_silent))
    return made


def holder_of_all(n: int) -> DecodeOffer:
    """A decode engine with all of the prefix in memory and nothing else to do."""
    return DecodeOffer(0, 0.0, True, n, 0.0, 0.0, n, 0.0)


def half_read(n: int, d: DecodeOffer) -> float:
    """Until D would have read half of the prefix."""
    return d.read_none + d.per_page * (n / 2) + d.silence


def each_half_read(state: Pass, turn: TurnView) -> Amounts:
    """`half_read` of every decode engine, for a turn of which none holds pages."""
    rows, side = state.decode, state.decode.side
    half = (turn.cached_pages or 0) / 2 * turn.page_size
    seconds: Amounts = (rows.store_queue + half) / side.store_rate + state.silence[1]
    return seconds


def ttft_of_each_prefill(state: Pass, turn: TurnView, d: DecodeOffer) -> Amounts:
    """`ttft_seconds` of every prefill engine with `d`, for a turn of which none holds pages."""
    rows, side = state.prefill, state.prefill.side
    n, page = turn.cached_pages or 0, turn.page_size
    seconds: Amounts = rows.work / side.compute_rate
    if n > 0:
        seconds = np.maximum(seconds, _load_of_each(state, n, page, d))
    seconds += max(1, turn.prompt_tokens - n * page) / side.compute_rate
    seconds += np.maximum(state.silence[0], d.silence)
    return seconds


def _load_of_each(state: Pass, n: int, page: int, d: DecodeOffer) -> Amounts:
    rows, side = state.prefill, state.prefill.side
    read_all, per_page = (rows.store_queue + n * page) / side.store_rate, page / side.store_rate
    pull_none = rows.peer_queue / side.peer_rate + state.view.profile.pull_fixed_s
    pull_page = page / side.peer_rate
    k = np.maximum((read_all - d.read_none) / (per_page + d.per_page), d.d)
    np.minimum(k, (read_all - pull_none) / (per_page + pull_page), out=k)
    k.clip(0.0, d.most, out=k)
    k *= side.plans & d.plans
    load: Amounts = (read_all - per_page * k) * (k < n)
    np.maximum(load, (d.read_none + d.per_page * k) * (k > d.d), out=load)
    np.maximum(load, (pull_none + pull_page * k) * (k > 0), out=load)
    return load
