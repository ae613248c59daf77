"""What a session's earlier turns mean for the placement of the next: its engines, their memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agent_runtime.scheduling.placement import Placed, ranks_of
from agent_runtime.scheduling.view import Rank
from agent_runtime.trajectory.holdings import Holdings
from agent_runtime.trajectory.model import SessionName
from dualpath_sglang.contract.engine_report import Memory

MAX_SESSIONS = 100_000
"""Sessions whose last engines are remembered, about 300 bytes each."""


class Known(NamedTuple):
    """held: leading pages in each engine's memory. prefill, decode: of the last turn."""

    held: Mapping[Rank, int]
    prefill: Rank | None = None
    decode: Rank | None = None


class Past:
    def __init__(self, ranks: Iterable[Rank]) -> None:
        self._holdings: Holdings[Rank, SessionName] = Holdings(ranks)
        self._last: OrderedDict[SessionName, tuple[Rank, Rank]] = OrderedDict()

    def of(self, session: SessionName, kept: int, page_size: int) -> Known:
        """For a turn that goes on after `kept` tokens of the history."""
        prefill, decode = self._last.get(session, (None, None))
        held: dict[Rank, int] = {}
        if page_size:
            tokens = self._holdings.of(session, kept)
            held = {rank: n // page_size for rank, n in tokens.items() if n >= page_size}
        return Known(held, prefill, decode)

    def ended(
        self, session: SessionName, placed: Placed, kept: int, prompt: int, output: int
    ) -> None:
        """A turn of so many tokens has joined the history. P has seen the prompt, D all of it."""
        p, d = ranks_of(placed)
        self._holdings.used(session, kept, {p: prompt, d: prompt + output})
        self._last[session] = (p, d)
        self._last.move_to_end(session)
        if len(self._last) > MAX_SESSIONS:
            self._last.popitem(last=False)

    def reported(self, rank: Rank, memory: Memory) -> None:
        """Host memory keeps a copy of what is in the device pool."""
        self._holdings.resize(rank, max(memory.device_pool, memory.host_pool))

    def emptied(self, rank: Rank) -> None:
        """The engine went away or was flushed."""
        self._holdings.clear(rank)
