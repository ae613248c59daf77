"""Placement that looks at one thing only, to compare with.

    round_robin        the engine after the last one used
    random             any
    session_affinity   the engines of the session's last turn
    cache_affinity     the engine that holds most of the prefix

Each picks P, then D among those that pair with it, of the engines with room. The split is left to
the configured rule; `auto` is the constant split of the fleet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agent_runtime.config import Role
from agent_runtime.scheduling.passes import Choice, Pass, Wait, run
from agent_runtime.scheduling.paths import choose_path
from agent_runtime.scheduling.placement import Decision
from agent_runtime.scheduling.view import ClusterView, Flags, TurnView
from agent_runtime.scheduling.working import Rows


def round_robin(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """The healthy engine with room after the last one used, for each role."""
    return run(view, waiting, now, _OneByOne("round robin", _after_the_last))


def at_random(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """Any healthy engine with room; what `rng` gives is all that decides."""

    def any_of(state: Pass, turn: TurnView, role: Role, rows: Rows[Any], marked: Flags) -> int:
        return int(rng.choice(np.flatnonzero(marked)))

    return run(view, waiting, now, _OneByOne("random", any_of))


def session_affinity(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """Where the session's last turn ran, if there is room; else the engine with the least to do."""
    return run(view, waiting, now, _OneByOne("session affinity", _the_same_as_last))


def cache_affinity(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """Where most of the prefix is in memory; where none is, the engine with the least to do."""
    return run(view, waiting, now, _OneByOne("cache affinity", _most_held))


class _Pick(Protocol):
    """One of the marked engines; at least one is."""

    def __call__(
        self, state: Pass, turn: TurnView, role: Role, rows: Rows[Any], marked: Flags
    ) -> int: ...


@dataclass(frozen=True)
class _OneByOne:
    name: str
    pick: _Pick

    def pair(self, state: Pass, turn: TurnView) -> Choice | Wait:
        prefills, decodes = state.prefill.with_room(turn), state.decode.with_room(turn)
        while prefills.any() and decodes.any():
            p = self.pick(state, turn, "prefill", state.prefill, prefills)
            namespace = int(state.view.prefill.namespace[p])
            _, fitting = state.pairable(prefills, decodes, namespace)
            if fitting.any():
                d = self.pick(state, turn, "decode", state.decode, fitting)
                k, words = choose_path(state, turn, p, d, default="split")
                return Choice(p, d, k, f"{self.name}; {words}" if words else self.name)
            prefills = prefills.copy()
            prefills[p] = False
        return Wait(state.no_room(turn))

    def plain(self, state: Pass, turn: TurnView) -> Choice | Wait:
        marked = state.plain.with_room(turn)
        if not marked.any():
            return Wait(state.no_room(turn))
        i = self.pick(state, turn, "plain", state.plain, marked)
        return Choice(i, i, None, f"{self.name} over plain engines")


def _after_the_last(state: Pass, turn: TurnView, role: Role, rows: Rows[Any], marked: Flags) -> int:
    cursor = state.cursor
    last = {"prefill": cursor.prefill, "decode": cursor.decode, "plain": cursor.plain}[role]
    start = rows.side.index.get(last, -1) + 1
    candidates = np.flatnonzero(marked)
    later = candidates[candidates >= start]
    return int(later[0] if len(later) else candidates[0])


def _the_same_as_last(
    state: Pass, turn: TurnView, role: Role, rows: Rows[Any], marked: Flags
) -> int:
    last = turn.prefill if role == "prefill" else turn.decode
    i = rows.side.index.get(last)
    return i if i is not None and marked[i] else rows.least_busy(marked)


def _most_held(state: Pass, turn: TurnView, role: Role, rows: Rows[Any], marked: Flags) -> int:
    held = [(pages, rows.side.index.get(rank)) for rank, pages in turn.held.items()]
    usable = [(pages, -rows.tok[i], -i) for pages, i in held if i is not None and marked[i]]
    most = max(usable, default=(0, 0.0, 0))
    return -most[2] if most[0] > 0 else rows.least_busy(marked)
