"""Sessions of mixed length that come back turn by turn, as the router sees them."""

from __future__ import annotations

import random
from collections import deque

from agent_runtime.scheduling.placement import Placed, ranks_of
from agent_runtime.scheduling.view import Rank, TurnView
from benchmarks.scheduler.engines import POOL
from dualpath_sglang.contract.ids import RequestId

PAGE = 64
APPEND = 429
"""Tokens that a turn adds to its context on the average (paper, section 3)."""
OUTPUT = 176


class Session:
    """context: tokens of its history. prefill, decode: of its last turn."""

    def __init__(self, context: int) -> None:
        self.context = context
        self.prefill: Rank | None = None
        self.decode: Rank | None = None


class Sessions:
    """`context`: every session's history in tokens; null: 1k to 100k, most of them short.

    Half of the prefixes are still in the memory of an engine of the last turn.
    """

    def __init__(self, count: int, context: int | None, rng: random.Random) -> None:
        self._rng = rng
        self.idle = deque(
            Session(context or round(1000 * 100 ** rng.random())) for _ in range(count)
        )
        self.of_turn: dict[RequestId, Session] = {}

    def turn(self, now: float) -> TurnView:
        """The next turn of the session that has been idle for longest."""
        rng, session = self._rng, self.idle.popleft()
        new = rng.randrange(1, 2 * APPEND)
        pages = session.context // PAGE
        held: dict[Rank, int] = {}
        if session.prefill is not None and rng.random() < 0.5:
            held[session.prefill] = pages
        if session.decode is not None and rng.random() < 0.5:
            held[session.decode] = pages
        turn = TurnView(
            RequestId(f"{rng.getrandbits(128):032x}"),
            session.context + new,
            new,
            now,
            cached_pages=pages,
            page_size=PAGE,
            output_tokens=OUTPUT,
            held=held,
            prefill=session.prefill,
            decode=session.decode,
        )
        self.of_turn[turn.id] = session
        return turn

    def placed(self, placed: Placed) -> None:
        session = self.of_turn[placed.id]
        session.prefill, session.decode = ranks_of(placed)

    def ended(self, turn: RequestId) -> None:
        self.idle.append(self.of_turn.pop(turn))

    def too_large(self, now: float) -> TurnView:
        """A turn that fits an empty decode engine and none of those there are."""
        turn_id = RequestId(f"{self._rng.getrandbits(128):032x}")
        return TurnView(turn_id, POOL - 1, 100, now, cached_pages=0, page_size=PAGE)
