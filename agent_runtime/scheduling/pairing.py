"""Which prefill and decode engines can serve a turn together: those whose KV pages are the same.

The KV that a prefill engine sends is of its own weights. A decode engine with others would go on
from it to wrong tokens, with a plan or without.
"""

from __future__ import annotations

import numpy as np

from agent_runtime.config import Role
from agent_runtime.scheduling.view import ClusterView, Flags, Side

SHOWN = 8
"""Leading characters of a namespace, for people."""


def lacking(view: ClusterView) -> str:
    """Why no turn can be placed at all, in words; empty where one can."""
    sides: dict[Role, Side] = {"prefill": view.prefill, "decode": view.decode}
    if len(view.plain):
        sides = {"plain": view.plain}
    for role, side in sides.items():
        if not side.up.any():
            return f"no healthy {role} engine ({len(side)} configured)"
    if view.mixed and not set(_namespaces(view.prefill)) & set(_namespaces(view.decode)):
        return (
            "no prefill and decode engine have KV pages of one namespace (model, weights, layout): "
            + ", ".join(_named(view))
        )
    return ""


def namespaces(view: ClusterView) -> list[int]:
    """Numbers of those that both roles have; in a fleet of one there is nothing to look at."""
    if not view.mixed:
        return [int(view.prefill.namespace[0])]
    return sorted({*_namespaces(view.prefill)} & {*_namespaces(view.decode)})


def of_namespace(view: ClusterView, side: Side, marked: Flags, namespace: int) -> Flags:
    """The marked engines whose pages are of this namespace."""
    if not view.mixed:
        return marked
    same: Flags = marked & (side.namespace == namespace)
    return same


def planning(view: ClusterView, side: Side, namespace: int) -> int:
    """Healthy engines of a namespace that take plans."""
    return int(np.count_nonzero(of_namespace(view, side, side.up & side.plans, namespace)))


def _namespaces(side: Side) -> list[int]:
    numbers: list[int] = side.namespace[side.up].tolist()
    return numbers


def _named(view: ClusterView) -> list[str]:
    names = {number: name[:SHOWN] or "unknown" for name, number in view.namespaces.items()}
    return [
        f"{rank.engine!r}: {names[int(side.namespace[i])]}"
        for side in (view.prefill, view.decode)
        for rank, i in side.index.items()
        if side.up[i]
    ]
