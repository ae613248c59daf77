"""Placement without knowledge of load: round robin."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from agent_runtime.config import Role
from agent_runtime.scheduling.placement import Decision, Placed, Refused, Waiting
from agent_runtime.scheduling.view import ClusterView, Cursor, TurnView
from dualpath_sglang.contract.ids import EngineId


def round_robin(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """The healthy engine after the last one used, for each role; first come, first served."""
    cursor, inflight = view.cursor, view.inflight
    decisions: list[Decision] = []
    for turn in waiting:
        missing = _missing(view)
        if missing and now - turn.arrived >= view.no_engine_wait_s:
            decisions.append(Refused(turn.id, missing))
        elif missing:
            decisions.append(Waiting(turn.id, missing))
        elif inflight >= view.max_inflight:
            limit = f"{inflight} turns are in flight, the limit is {view.max_inflight}"
            decisions.append(Waiting(turn.id, limit))
        else:
            cursor, placed = _place(view, cursor, turn)
            inflight += 1
            decisions.append(placed)
    return decisions


def advance(cursor: Cursor, placed: Placed) -> Cursor:
    """The cursor after `placed`; the owner of the state applies it."""
    if placed.prefill == placed.decode:
        return replace(cursor, plain=placed.decode)
    return replace(cursor, prefill=placed.prefill, decode=placed.decode)


def _place(view: ClusterView, cursor: Cursor, turn: TurnView) -> tuple[Cursor, Placed]:
    if view.of_role("plain"):
        plain = _next(view, "plain", cursor.plain)
        placed = Placed(turn.id, plain, plain, None, "round robin over plain engines")
    else:
        prefill = _next(view, "prefill", cursor.prefill)
        decode = _next(view, "decode", cursor.decode)
        placed = Placed(turn.id, prefill, decode, None, "round robin")
    return advance(cursor, placed), placed


def _next(view: ClusterView, role: Role, last: EngineId | None) -> EngineId:
    """The first healthy engine after `last` in configuration order, wrapping around."""
    engines = view.of_role(role)
    ids = [engine.id for engine in engines]
    start = ids.index(last) + 1 if last in ids else 0
    order = engines[start:] + engines[:start]
    return next(engine.id for engine in order if engine.healthy)


def _missing(view: ClusterView) -> str:
    """Which role has no healthy engine, in words; empty if none lacks."""
    roles: tuple[Role, ...] = ("plain",) if view.of_role("plain") else ("prefill", "decode")
    for role in roles:
        if not view.healthy(role):
            return f"no healthy {role} engine ({len(view.of_role(role))} configured)"
    return ""
