"""One pass over the waiting turns, whatever the policy: who may be placed, in which order.

    for each turn, first come first served:
        a role has no engine up ─▶ Waiting, in the end Refused
        no engine could ever hold it ─▶ Refused
        max_inflight is reached ─▶ Waiting
        the policy chooses ─▶ Placed, and the pass counts it
        the policy finds no room ─▶ Waiting, and later turns may overtake it

A turn that has been overtaken `MAX_OVERTAKEN` times keeps the engines that are nearest to having
room for it free of later turns: a big turn may be late, but it is not late for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from agent_runtime.scheduling.pairing import lacking, namespaces, of_namespace, planning
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Score, Waiting, ranks_of
from agent_runtime.scheduling.room import kv_tokens, load_tokens, moves
from agent_runtime.scheduling.view import (
    Amounts,
    ClusterView,
    Cursor,
    Flags,
    PlainSide,
    Side,
    TurnView,
)
from agent_runtime.scheduling.working import DecodeRows, PrefillRows, Rows

MAX_OVERTAKEN = 64
"""Later turns that may be placed before one that has no room."""


REPORT_DUE_S = 1.0
"""After this a report is overdue: they come many times a second."""


class Choice(NamedTuple):
    """Rows of the two engines; of a plain engine the same twice. `split` null: no plan."""

    prefill: int
    decode: int
    split: int | None
    reason: str
    alternatives: tuple[Score, ...] = ()


class Wait(NamedTuple):
    """No room for this turn. `stops`: nor for anybody behind it."""

    reason: str
    group: int | None = None
    stops: bool = False


class Chooser(Protocol):
    """The part in which policies differ. It looks at the pass and changes nothing."""

    def pair(self, state: Pass, turn: TurnView) -> Choice | Wait: ...

    def plain(self, state: Pass, turn: TurnView) -> Choice | Wait: ...


class Pass:
    """The view with what this pass has placed so far."""

    def __init__(self, view: ClusterView, now: float) -> None:
        self.view, self.now = view, now
        self.prefill = PrefillRows(view.prefill)
        self.decode = DecodeRows(view.decode)
        self.plain: Rows[PlainSide] = Rows(view.plain)
        self.inflight, self.cursor = view.inflight, view.cursor
        self.is_plain = len(view.plain) > 0
        self.missing = lacking(view)
        self.largest_prefill = _largest_pool(view.prefill)
        self.largest_decode = _largest_pool(view.plain if self.is_plain else view.decode)
        self._planning: dict[int, tuple[int, int]] = {}
        if view.mixed:
            for rows in (self.prefill, self.decode):
                rows.open &= np.isin(rows.side.namespace, self.namespaces)

    @cached_property
    def silence(self) -> tuple[Amounts, Amounts]:
        """Seconds by which the reports of the prefill and of the decode engines are overdue."""
        return self._silence(self.view.prefill), self._silence(self.view.decode)

    @cached_property
    def namespaces(self) -> list[int]:
        """Numbers of those within which engines can be paired."""
        return namespaces(self.view)

    def pairable(self, prefills: Flags, decodes: Flags, namespace: int) -> tuple[Flags, Flags]:
        """The marked engines of a namespace."""
        view = self.view
        return (
            of_namespace(view, view.prefill, prefills, namespace),
            of_namespace(view, view.decode, decodes, namespace),
        )

    def planning(self, namespace: int) -> tuple[int, int]:
        """Healthy prefill and decode engines of a namespace that take plans."""
        if namespace not in self._planning:
            view = self.view
            self._planning[namespace] = (
                planning(view, view.prefill, namespace),
                planning(view, view.decode, namespace),
            )
        return self._planning[namespace]

    def held(self, turn: TurnView, side: Side, i: int) -> int:
        """Leading pages of the turn in the memory of engine `i`."""
        return turn.held.get(side.ranks[i], 0) if turn.held else 0

    def no_room(self, turn: TurnView) -> str:
        """What is full, in words."""
        if self.is_plain:
            return f"no plain engine has {kv_tokens(turn)} KV tokens free"
        short = int(np.count_nonzero(self.prefill.with_room(turn)))
        full = int(np.count_nonzero(self.decode.with_room(turn)))
        return (
            f"{short} prefill engines have room to load {load_tokens(turn)} tokens now, "
            f"{full} decode engines have {kv_tokens(turn)} KV tokens free"
        )

    def place(self, turn: TurnView, choice: Choice, *, more: bool) -> Placed:
        """The decision; counted in where `more` turns come after it in this pass."""
        placed = (
            self._plain(turn, choice, more) if self.is_plain else self._pair(turn, choice, more)
        )
        self.inflight += 1
        self.cursor = advance(self.cursor, placed)
        return placed

    def keep_free(self) -> None:
        """The engines that are nearest to having room for more take no later turn."""
        for rows, room in (
            (self.prefill, self.prefill.loadable),
            (self.decode, self.decode.free),
            (self.plain, self.plain.free),
        ):
            if len(room):
                open_room = np.where(rows.open, room, -np.inf)
                nearest = int(open_room.argmax())
                # Where room has no end, it is not what the turn lacks.
                rows.open[nearest] &= not np.isfinite(open_room[nearest])

    def _silence(self, side: Side) -> Amounts:
        late: Amounts = np.maximum(0.0, self.now - side.reported_at - REPORT_DUE_S)
        return late

    def _pair(self, turn: TurnView, choice: Choice, more: bool) -> Placed:
        prefill, decode = self.prefill.side, self.decode.side
        p, d = choice.prefill, choice.decode
        moved = moves(turn, choice.split, self.held(turn, prefill, p), self.held(turn, decode, d))
        if more:
            self.prefill.charge(p, turn, moved)
            self.decode.charge(d, turn, moved)
        return Placed(
            turn.id,
            prefill.ranks[p].engine,
            decode.ranks[d].engine,
            choice.split,
            choice.reason,
            None if choice.split is None else turn.cached_pages,
            *moved,
            prefill.ranks[p].dp,
            decode.ranks[d].dp,
            choice.alternatives,
        )

    def _plain(self, turn: TurnView, choice: Choice, more: bool) -> Placed:
        rank = self.plain.side.ranks[choice.prefill]
        computes = moves(turn, None, self.held(turn, self.plain.side, choice.prefill), 0).computes
        if more:
            self.plain.charge_plain(choice.prefill, turn, computes)
        return Placed(
            turn.id,
            rank.engine,
            rank.engine,
            None,
            choice.reason,
            computes=computes,
            prefill_rank=rank.dp,
            decode_rank=rank.dp,
            alternatives=choice.alternatives,
        )


def run(
    view: ClusterView, waiting: Sequence[TurnView], now: float, chooser: Chooser
) -> list[Decision]:
    """One decision per turn, in the same order."""
    state = Pass(view, now)
    choose = chooser.plain if state.is_plain else chooser.pair
    outcomes: list[Placed | Refused | _Held] = []
    placed, stopped = 0, None
    for turn in waiting:
        result = _refusal(state, turn) or stopped or _limit(state) or choose(state, turn)
        if isinstance(result, Choice):
            outcomes.append(state.place(turn, result, more=turn is not waiting[-1]))
            placed += 1
        elif isinstance(result, Refused):
            outcomes.append(result)
        else:
            if result.stops:
                stopped = Wait(result.reason)
            elif turn.overtaken >= MAX_OVERTAKEN:
                state.keep_free()
            outcomes.append(_Held(turn, result, placed))
    return [_settled(one, placed) if isinstance(one, _Held) else one for one in outcomes]


def advance(cursor: Cursor, placed: Placed) -> Cursor:
    """The cursor after `placed`; the owner of the state applies it."""
    prefill, decode = ranks_of(placed)
    if prefill == decode:
        return Cursor(cursor.prefill, cursor.decode, decode, cursor.splits)
    return Cursor(prefill, decode, cursor.plain, cursor.splits + (placed.split is not None))


class _Held(NamedTuple):
    """`before`: turns placed in this pass before it had to wait."""

    turn: TurnView
    wait: Wait
    before: int


def _settled(held: _Held, placed: int) -> Waiting:
    turn, wait, before = held
    group = turn.group if wait.group is None else wait.group
    return Waiting(turn.id, wait.reason, group, turn.overtaken + placed - before)


def _refusal(state: Pass, turn: TurnView) -> Refused | Wait | None:
    """Engines that are away may come back, for a while; what fits nowhere never will."""
    if state.missing:
        if state.now - turn.arrived >= state.view.no_engine_wait_s:
            return Refused(turn.id, state.missing)
        return Wait(state.missing)
    tokens, kv = turn.prompt_tokens, kv_tokens(turn)
    if tokens > state.largest_prefill:
        pool = f"the largest KV pool of a prefill engine has {state.largest_prefill:.0f}"
        return Refused(turn.id, f"the prompt has {tokens} tokens, {pool}")
    if kv > state.largest_decode:
        pool = f"the largest KV pool of an engine that decodes has {state.largest_decode:.0f}"
        return Refused(turn.id, f"prompt and output are {kv} tokens, {pool}")
    return None


def _largest_pool(side: Side) -> float:
    """In tokens; without end where there are no engines, or some that do not say."""
    return float(side.pool.max()) if len(side) else float("inf")


def _limit(state: Pass) -> Wait | None:
    if state.inflight < state.view.max_inflight:
        return None
    return Wait(
        f"{state.inflight} turns are in flight, the limit is {state.view.max_inflight}", stops=True
    )
