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

import numpy as np

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.profile import Z_FACTOR
from agent_runtime.scheduling.room import kv_tokens
from agent_runtime.scheduling.view import Flags, TurnView
from dualpath_sglang.contract.ids import RequestId


class DecodeGroups:
    """The groups of one pass. of_turn: in whose queue each waiting turn is. z: once for a pass.
    ended: groups whose fetch is over."""

    def __init__(self, state: Pass, waiting: Sequence[TurnView]) -> None:
        side, rows = state.decode.side, state.decode
        up = np.flatnonzero(rows.open)
        self._members = {
            group: rows.open & (side.group == group) for group in side.group[up].tolist()
        }
        self._state = state
        self.ended: set[int] = set()
        self.of_turn = self._drain(waiting)
        self.z = {group: self._z(group, waiting) for group in self._members}

    def choose(self, turn: TurnView, group: int) -> tuple[int, str] | None:
        """The decode engine of the group, and why; null: none has enough free memory."""
        rows = self._state.decode
        feasible = self._members[group] & rows.with_room(turn)
        if not feasible.any():
            return None
        low = feasible & (rows.tok + turn.prompt_tokens <= self.z[group])
        if low.any():
            candidates = np.flatnonzero(low).tolist()
            fewest = min(candidates, key=lambda i: (rows.seq[i], rows.tok[i], i))
            return fewest, f"fewest requests of those below Z={self.z[group]:.0f}"
        return rows.least_busy(feasible), f"fewest tokens, all above Z={self.z[group]:.0f}"

    def with_room(self, turn: TurnView) -> list[int]:
        """Groups that have an engine with room, the one with the fewest tokens first."""
        rows = self._state.decode
        room = rows.with_room(turn)
        groups = [group for group, members in self._members.items() if (members & room).any()]
        return sorted(groups, key=lambda group: (self._tokens(self._members[group]), group))

    def _drain(self, waiting: Sequence[TurnView]) -> dict[RequestId, int]:
        """Phase 1. A turn that is in a group's queue stays there while the group has an engine."""
        sums = {group: self._tokens(members) for group, members in self._members.items()}
        queued = {turn.id: turn.group for turn in waiting if turn.group in sums}
        for turn in waiting:
            if (group := queued.get(turn.id)) is not None:
                sums[group] += turn.prompt_tokens
        of_turn: dict[RequestId, int] = {}
        for turn in waiting:
            group = queued.get(turn.id)
            if group is None:
                group = min(sums, key=lambda g: (sums[g], g))
                sums[group] += turn.prompt_tokens
            of_turn[turn.id] = group
        return of_turn

    def _z(self, group: int, waiting: Sequence[TurnView]) -> float:
        members = self._members[group]
        free = float(self._state.decode.free[members].sum())
        length = 0
        for turn in waiting:
            if self.of_turn[turn.id] == group:
                free -= kv_tokens(turn)
                if free < 0:
                    break
                length += turn.prompt_tokens
        return Z_FACTOR * (length + self._tokens(members)) / int(np.count_nonzero(members))

    def _tokens(self, members: Flags) -> float:
        return float(self._state.decode.tok[members].sum())
