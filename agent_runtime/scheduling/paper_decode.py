"""Decode scheduling of the paper (section 6.1), in two phases.

    1  across groups   each request of the global queue ─▶ the group with the least sum of tok_e
    2  within a group  Z = 1.05 * (sum of len_r over R + sum of tok_e) / |E|
                       of the engines with enough free HBM:
                       low-token (tok_e + len_r <= Z), if any ─▶ argmin seq_e
                       else ─▶ argmin tok_e; none with enough ends the group's fetch

R: the head of the group's queue, as far as it would fit if free memory were one piece. The sum of a
group counts what waits in its queue; otherwise a burst would all go to one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.profile import Z_FACTOR
from agent_runtime.scheduling.room import kv_tokens
from agent_runtime.scheduling.view import Amounts, Flags, TurnView
from dualpath_sglang.contract.ids import RequestId


class DecodeGroups:
    """The groups of one pass. of_turn: in whose queue each waiting turn is. ended: groups whose
    fetch is over."""

    def __init__(self, state: Pass, waiting: Sequence[TurnView]) -> None:
        self._state, self._waiting = state, waiting
        rows, open_ = state.decode, state.decode.open
        self._sizes = self._sums(open_.astype(np.float64))
        self._tokens = self._sums(np.where(open_, rows.tok, 0.0))
        self._free = self._sums(np.where(open_, rows.free, 0.0))
        self.ended: set[int] = set()
        self.of_turn = self._drain()
        self.z = cache(self._z)
        """Of a group, as it was when the pass began."""
        self._members = cache(self._members_of)

    def choose(self, turn: TurnView, group: int) -> tuple[int, str] | None:
        """The decode engine of the group, and why; null: none has enough free memory."""
        rows = self._state.decode
        feasible = self._members(group) & rows.with_room(turn)
        if not feasible.any():
            return None
        z = self.z(group)
        low = feasible & (rows.tok + turn.prompt_tokens <= z)
        if low.any():
            candidates = np.flatnonzero(low).tolist()
            fewest = min(candidates, key=lambda i: (rows.seq[i], rows.tok[i], i))
            return fewest, f"fewest requests of those below Z={z:.0f}"
        return rows.least_busy(feasible), f"fewest tokens, all above Z={z:.0f}"

    def with_room(self, turn: TurnView) -> int | None:
        """Of the groups that have an engine with room the one with the fewest tokens."""
        rows = self._state.decode
        room = self._sums((rows.open & rows.with_room(turn)).astype(np.float64))
        tokens = self._sums(np.where(rows.open, rows.tok, 0.0))
        groups = np.flatnonzero(room)
        return int(groups[tokens[groups].argmin()]) if len(groups) else None

    def _drain(self) -> dict[RequestId, int]:
        """Phase 1. A turn that is in a group's queue stays there while the group has an engine."""
        sums = np.where(self._sizes > 0, self._tokens, np.inf)
        of_turn: dict[RequestId, int] = {}
        for turn in self._waiting:
            if turn.group is not None and turn.group < len(sums) and self._sizes[turn.group]:
                of_turn[turn.id] = turn.group
                sums[turn.group] += turn.prompt_tokens
        for turn in self._waiting:
            if turn.id not in of_turn:
                of_turn[turn.id] = group = int(sums.argmin())
                sums[group] += turn.prompt_tokens
        return of_turn

    def _z(self, group: int) -> float:
        free, length = float(self._free[group]), 0
        for turn in self._waiting:
            if self.of_turn[turn.id] == group:
                free -= kv_tokens(turn)
                if free < 0:
                    break
                length += turn.prompt_tokens
        return Z_FACTOR * (length + float(self._tokens[group])) / float(self._sizes[group])

    def _members_of(self, group: int) -> Flags:
        rows = self._state.decode
        members: Flags = rows.open & (rows.side.group == group)
        return members

    def _sums(self, amounts: Amounts) -> Amounts:
        """Of each group, by its number."""
        sums: Amounts = np.bincount(self._state.decode.side.group, amounts).astype(np.float64)
        return sums
