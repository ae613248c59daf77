"""The three possible decisions about a waiting turn, each with its reason.

    schedule(view, waiting, now, rng) -> one decision per waiting turn, in the same order

A policy is pure: the same arguments give the same decisions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_runtime.scheduling.view import ClusterView, TurnView
from dualpath_sglang.contract.ids import EngineId, RequestId


@dataclass(frozen=True)
class Placed:
    """Run on these two engines (`prefill == decode`: one plain engine).

    Of `pages` leading pages in the store the decode side reads the first `split` and the prefill
    side the rest, each with what it has to read in tokens; both null: no plan.
    """

    id: RequestId
    prefill: EngineId
    decode: EngineId
    split: int | None
    reason: str
    pages: int | None = None
    prefill_reads: int = 0
    decode_reads: int = 0


@dataclass(frozen=True)
class Waiting:
    """No room now: ask again when something has changed."""

    id: RequestId
    reason: str


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
