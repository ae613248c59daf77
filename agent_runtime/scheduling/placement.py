"""The three possible decisions about a waiting turn, each with its reason.

    schedule(view, waiting, now, rng) -> one decision per waiting turn, in the same order

`waiting` comes first come, first served. A policy is pure: the same arguments give the same
decisions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from agent_runtime.scheduling.view import ClusterView, Rank, TurnView
from dualpath_sglang.contract.ids import EngineId, RequestId


class Score(NamedTuple):
    """One pair of engines that could have been chosen; `ttft_s`: predicted, from now on."""

    prefill: Rank
    decode: Rank
    ttft_s: float


@dataclass(frozen=True)
class Placed:
    """Run on these two engines (`prefill == decode`: one plain engine) and ranks.

    Of `pages` leading pages in the store the decode side has to supply the first `split`, the
    prefill side the rest; both null: no plan. In tokens: prefill_reads and decode_reads from the
    store, pulls by P from D, computes by P. alternatives: the best, the chosen pair first.
    """

    id: RequestId
    prefill: EngineId
    decode: EngineId
    split: int | None
    reason: str
    pages: int | None = None
    prefill_reads: int = 0
    decode_reads: int = 0
    pulls: int = 0
    computes: int = 0
    prefill_rank: int = 0
    decode_rank: int = 0
    alternatives: tuple[Score, ...] = ()


def ranks_of(placed: Placed) -> tuple[Rank, Rank]:
    """The two ranks; equal: one plain engine."""
    return (
        Rank(placed.prefill, placed.prefill_rank),
        Rank(placed.decode, placed.decode_rank),
    )


@dataclass(frozen=True)
class Waiting:
    """No room now: ask again when something has changed, with `group` and `overtaken` in its
    view."""

    id: RequestId
    reason: str
    group: int | None = None
    overtaken: int = 0


@dataclass(frozen=True)
class Refused:
    """No engine could take it; waiting would not help."""

    id: RequestId
    reason: str


Decision = Placed | Waiting | Refused


class Policy(Protocol):
    def __call__(
        self, view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
    ) -> list[Decision]: ...
