"""Which prefill and decode engines can serve a turn together: those whose KV pages are the same.

The KV that a prefill engine sends is of its own weights. A decode engine with others would go on
from it to wrong tokens, with a plan or without.
"""

from __future__ import annotations

from agent_runtime.config import Role
from agent_runtime.scheduling.view import ClusterView, Cursor, EngineView
from dualpath_sglang.contract.ids import EngineId

SHOWN = 8
"""Leading characters of a namespace, for people."""


def next_pair(view: ClusterView, cursor: Cursor) -> tuple[EngineView, EngineView] | None:
    """The first in turn; null where no two go together."""
    decodes = in_turn(view, "decode", cursor.decode)
    for prefill in in_turn(view, "prefill", cursor.prefill):
        for decode in decodes:
            if decode.namespace == prefill.namespace:
                return prefill, decode
    return None


def in_turn(view: ClusterView, role: Role, last: EngineId | None) -> list[EngineView]:
    """The healthy engines of a role, those after `last` first, in configuration order."""
    engines = view.of_role(role)
    ids = [engine.id for engine in engines]
    start = ids.index(last) + 1 if last in ids else 0
    return [engine for engine in engines[start:] + engines[:start] if engine.healthy]


def lacking(view: ClusterView) -> str:
    """Why no turn can be placed at all, in words; empty where one can."""
    roles: tuple[Role, ...] = ("plain",) if view.of_role("plain") else ("prefill", "decode")
    for role in roles:
        if not view.healthy(role):
            return f"no healthy {role} engine ({len(view.of_role(role))} configured)"
    if roles != ("plain",) and next_pair(view, view.cursor) is None:
        named = (f"{e.id!r}: {e.namespace[:SHOWN] or 'unknown'}" for e in view.engines if e.healthy)
        return (
            "no prefill and decode engine have KV pages of one namespace (model, weights, layout): "
            + ", ".join(named)
        )
    return ""
