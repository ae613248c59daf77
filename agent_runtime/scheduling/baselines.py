"""Placement without knowledge of load: round robin, with the split of the turn's cached prefix."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agent_runtime.scheduling.pairing import in_turn, lacking, next_pair
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Waiting
from agent_runtime.scheduling.split import Sides, choose_split
from agent_runtime.scheduling.view import ClusterView, Cursor, TurnView
from dualpath_sglang.contract.ids import EngineId


def round_robin(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """The healthy engine after the last one used, for each role, of those that can be together;
    first come, first served."""
    cursor, inflight = view.cursor, view.inflight
    reading = Counter({engine.id: engine.reading_tokens for engine in view.engines})
    decisions: list[Decision] = []
    missing = lacking(view)
    for turn in waiting:
        if missing and now - turn.arrived >= view.no_engine_wait_s:
            decisions.append(Refused(turn.id, missing))
        elif missing:
            decisions.append(Waiting(turn.id, missing))
        elif inflight >= view.max_inflight:
            limit = f"{inflight} turns are in flight, the limit is {view.max_inflight}"
            decisions.append(Waiting(turn.id, limit))
        else:
            placed = _split(view, _place(view, cursor, turn), turn, cursor.splits, reading)
            cursor = advance(cursor, placed)
            reading[placed.prefill] += placed.prefill_reads
            reading[placed.decode] += placed.decode_reads
            inflight += 1
            decisions.append(placed)
    return decisions


def advance(cursor: Cursor, placed: Placed) -> Cursor:
    """The cursor after `placed`; the owner of the state applies it."""
    if placed.prefill == placed.decode:
        return replace(cursor, plain=placed.decode)
    splits = cursor.splits + (placed.split is not None)
    return replace(cursor, prefill=placed.prefill, decode=placed.decode, splits=splits)


def _place(view: ClusterView, cursor: Cursor, turn: TurnView) -> Placed:
    if view.of_role("plain"):
        plain = in_turn(view, "plain", cursor.plain)[0].id
        return Placed(turn.id, plain, plain, None, "round robin over plain engines")
    pair = next_pair(view, cursor)
    assert pair is not None
    return Placed(turn.id, pair[0].id, pair[1].id, None, "round robin")


def _split(
    view: ClusterView, placed: Placed, turn: TurnView, splits: int, reading: Counter[EngineId]
) -> Placed:
    """`placed` with its split, where this turn and both engines can have one."""
    pages = next(engine.namespace for engine in view.engines if engine.id == placed.prefill)
    planning = {
        engine.id
        for engine in view.engines
        if engine.healthy and engine.plans and engine.namespace == pages
    }
    if placed.prefill == placed.decode or view.split_policy == "none":
        return placed
    if turn.cached_pages is None:
        return replace(placed, reason=f"{placed.reason}; no plan: {turn.no_plan}")
    for name in (placed.prefill, placed.decode):
        if name not in planning:
            return replace(placed, reason=f"{placed.reason}; no plan: {name!r} takes none")
    if turn.namespace and turn.namespace != pages:
        why = "what the store holds was asked for other engines' pages"
        return replace(placed, reason=f"{placed.reason}; no plan: {why}")
    prefills = sum(engine.id in planning for engine in view.of_role("prefill"))
    decodes = sum(engine.id in planning for engine in view.of_role("decode"))
    sides = Sides(
        prefill_engines=prefills,
        decode_engines=decodes,
        prefill_tokens=reading[placed.prefill],
        decode_tokens=reading[placed.decode],
        # Once round the engines: turn by turn, of two engines one would always have the same path.
        turn=splits // max(prefills, decodes),
    )
    split = choose_split(view.split_policy, turn.cached_pages, sides)
    assert split is not None
    return replace(
        placed,
        split=split.k,
        pages=turn.cached_pages,
        prefill_reads=(turn.cached_pages - split.k) * turn.page_size,
        decode_reads=split.k * turn.page_size,
        reason=f"{placed.reason}; {split.reason}",
    )
