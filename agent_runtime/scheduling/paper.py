"""The paper's scheduler to the letter: Algorithm 1, decode in two phases, the shorter queue reads.

What the paper leaves open: a report is its group's fetch, and any other event one of all groups;
P is given out in the order of arrival; a turn is charged when it has both P and D; one that finds
no room on D waits in its D group's queue without holding P. Turns of other groups may overtake it
`MAX_OVERTAKEN` times; then it may go to another group, and nobody passes it. Of equal reading
queues P's is taken, and P's too where D has no room to stage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent_runtime.scheduling.pairing import of_namespace
from agent_runtime.scheduling.paper_decode import DecodeGroups
from agent_runtime.scheduling.paper_prefill import (
    alpha_tokens,
    choose_prefill,
    node_queues,
    not_overloaded,
)
from agent_runtime.scheduling.passes import MAX_OVERTAKEN, Choice, Pass, Wait, run
from agent_runtime.scheduling.paths import choose_path
from agent_runtime.scheduling.placement import Decision
from agent_runtime.scheduling.view import ClusterView, Flags, TurnView


def paper(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    return run(view, waiting, now, _Paper(view, waiting))


class _Paper:
    def __init__(self, view: ClusterView, waiting: Sequence[TurnView]) -> None:
        self._waiting = waiting
        self._read_q = node_queues(view)
        self._alpha = alpha_tokens(view.prefill, view.profile)
        groups = set(view.prefill.group.tolist())
        self._p_group = view.fetching if view.fetching in groups else None
        self._d_group = view.fetching if view.fetching not in groups else None
        self._groups: DecodeGroups | None = None

    def pair(self, state: Pass, turn: TurnView) -> Choice | Wait:
        if self._groups is None:
            self._groups = DecodeGroups(state, self._waiting)
        groups = self._groups
        eligible = not_overloaded(state, self._p_group)
        if not eligible.any():
            return Wait("no prefill engine is outside C1", stops=True)
        if self._prefill(state, turn, eligible) is None:
            return Wait(state.no_room(turn), stops=True)
        group = groups.of_turn[turn.id]
        late = turn.overtaken >= MAX_OVERTAKEN
        if late:
            found = groups.with_room(turn)
            group = group if found is None else found
        elif group in groups.ended or self._d_group not in (None, group):
            return Wait(f"in the queue of decode group {group}", group)
        d = groups.choose(turn, group)
        if d is None:
            groups.ended.add(group)
            return Wait(f"decode group {group}: {state.no_room(turn)}", group, stops=late)
        view, number = state.view, int(state.view.decode.namespace[d[0]])
        p = self._prefill(state, turn, of_namespace(view, view.prefill, eligible, number))
        if p is None:
            return Wait(f"no prefill engine has room that goes with {view.decode.ranks[d[0]]}")
        return self._choice(state, turn, p, d)

    def plain(self, state: Pass, turn: TurnView) -> Choice | Wait:
        marked = state.plain.with_room(turn)
        if not marked.any():
            return Wait(state.no_room(turn))
        i = state.plain.least_busy(marked)
        return Choice(i, i, None, f"fewest tokens: {state.plain.tok[i]:.0f}")

    def _prefill(self, state: Pass, turn: TurnView, eligible: Flags) -> tuple[int, str] | None:
        return choose_prefill(state, turn, eligible, self._read_q[0], self._alpha)

    def _choice(
        self, state: Pass, turn: TurnView, p: tuple[int, str], d: tuple[int, str]
    ) -> Choice:
        queues = float(self._read_q[0][p[0]]), float(self._read_q[1][d[0]])
        k, words = choose_path(state, turn, p[0], d[0], default="shorter_queue", queues=queues)
        reason = f"P: fewest tokens in {p[1]}; D: {d[1]}; {words}"
        return Choice(p[0], d[0], k, reason)
