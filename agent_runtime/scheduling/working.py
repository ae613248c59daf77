"""The columns of one pass: copies of what a placement changes, and who is open for placements."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from agent_runtime.scheduling.room import Moves, kv_tokens, load_tokens
from agent_runtime.scheduling.view import DecodeSide, Flags, PrefillSide, Side, TurnView

S = TypeVar("S", bound=Side)


class Rows(Generic[S]):
    """open: healthy, and not kept free for another turn. The columns are the view's until the first
    placement is charged."""

    def __init__(self, side: S) -> None:
        self.side = side
        self.open = side.up.copy()
        self.seq, self.tok = side.seq, side.tok
        self.work, self.store_queue = side.work, side.store_queue
        self.loadable, self.free = side.loadable, side.free

    def with_room(self, turn: TurnView) -> Flags:
        """Open, and the device pool has room for prompt and output."""
        mask: Flags = self.open & (self.free >= kv_tokens(turn))
        return mask

    def fits(self, i: int, turn: TurnView) -> bool:
        """`with_room` of one engine."""
        return bool(self.open[i]) and bool(self.free[i] >= kv_tokens(turn))

    def least_busy(self, marked: Flags) -> int:
        """Of the marked engines the one with the fewest tokens, then the first."""
        return int(np.where(marked, self.tok, np.inf).argmin())

    def own(self) -> None:
        """Copies what is the view's, before something is written."""
        if self.tok is self.side.tok:
            self.seq, self.tok = self.seq.copy(), self.tok.copy()
            self.work, self.store_queue = self.work.copy(), self.store_queue.copy()
            self.loadable, self.free = self.loadable.copy(), self.free.copy()

    def charge_plain(self, i: int, turn: TurnView, computes: int) -> None:
        self.own()
        self.seq[i] += 1
        self.tok[i] += turn.prompt_tokens
        self.work[i] += computes
        self.free[i] -= kv_tokens(turn)


class PrefillRows(Rows[PrefillSide]):
    def __init__(self, side: PrefillSide) -> None:
        super().__init__(side)
        self.peer_queue = side.peer_queue

    def own(self) -> None:
        super().own()
        if self.peer_queue is self.side.peer_queue:
            self.peer_queue = self.peer_queue.copy()

    def with_room(self, turn: TurnView) -> Flags:
        """Open, and the prefetch share has room for what the turn's plan loads: at most all of the
        share, since more than that is never loaded at once."""
        need = load_tokens(turn)
        if need == 0:
            return self.open
        limit = self.side.load_limit
        mask: Flags = self.open & (np.minimum(need, limit) <= self.loadable)
        for rank in turn.held:
            if (i := self.side.index.get(rank)) is not None:
                mask[i] = self.fits(i, turn)
        return mask

    def fits(self, i: int, turn: TurnView) -> bool:
        held = turn.held.get(self.side.ranks[i], 0) if turn.held else 0
        need = max(0, load_tokens(turn) - held * turn.page_size)
        room = float(self.loadable[i])
        return bool(self.open[i]) and (need <= room or float(self.side.load_limit[i]) <= room)

    def charge(self, i: int, turn: TurnView, moved: Moves) -> None:
        self.own()
        self.seq[i] += 1
        self.tok[i] += turn.prompt_tokens
        self.work[i] += moved.computes
        self.store_queue[i] += moved.prefill_reads
        self.peer_queue[i] += moved.pulls
        self.loadable[i] -= moved.prefill_reads + moved.pulls


class DecodeRows(Rows[DecodeSide]):
    def most_pages(self, i: int, turn: TurnView, held: int) -> int:
        """The largest k whose pages D has or has room to stage; `held`: has."""
        n = turn.cached_pages or 0
        room = float(self.loadable[i])
        if n <= held or room >= (n - held) * turn.page_size:
            return n
        return min(n, held + max(0, int(room // turn.page_size)))

    def charge(self, i: int, turn: TurnView, moved: Moves) -> None:
        self.own()
        self.seq[i] += 1
        self.tok[i] += turn.prompt_tokens
        self.store_queue[i] += moved.decode_reads
        self.loadable[i] -= moved.decode_reads
        self.free[i] -= kv_tokens(turn)
