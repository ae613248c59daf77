"""Algorithm 1 of the paper (section 6.1): which prefill engine gets the head of the queue.

    C1  tok_e > beta                                  overloaded: gets nothing
    C2  tok_e <= beta and read_q_n(e) <= alpha        short disk queue: preferred
    C3  tok_e <= beta and read_q_n(e) >  alpha        long disk queue: second choice

    e* = argmin tok_e over C2, else over C3, else the fetch ends

The classes are made anew after each assignment; `read_q_n` is as reported until the next pass.
"""

from __future__ import annotations

import numpy as np

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.profile import ALPHA_S, Profile
from agent_runtime.scheduling.view import Amounts, ClusterView, Flags, Side, TurnView


def node_queues(view: ClusterView) -> tuple[Amounts, Amounts]:
    """read_q_n(e) in tokens: what all engines of its node have to read, for each prefill and each
    decode engine."""
    sides = (view.prefill, view.decode)
    nodes = np.concatenate([side.node for side in sides])
    queues: Amounts = np.concatenate([side.store_queue for side in sides])
    of_node: Amounts = np.bincount(nodes, queues).astype(np.float64)
    return of_node[view.prefill.node], of_node[view.decode.node]


def alpha_tokens(side: Side, profile: Profile) -> Amounts:
    """alpha for each engine: what its node reads in `ALPHA_S`, where nobody has measured it at the
    rate of the engine of the node that reads fastest."""
    if profile.alpha_tokens is not None:
        return np.full(len(side), profile.alpha_tokens)
    fastest = np.zeros(int(side.node.max(initial=0)) + 1)
    np.maximum.at(fastest, side.node, side.store_rate)
    alpha: Amounts = fastest[side.node] * ALPHA_S
    return alpha


def not_overloaded(state: Pass, group: int | None) -> Flags:
    """Engines outside C1; of the fetching group, if it is one that fetches."""
    rows = state.prefill
    mask: Flags = rows.open & (rows.tok <= state.view.profile.beta_tokens)
    return mask if group is None else mask & (rows.side.group == group)


def choose_prefill(
    state: Pass, turn: TurnView, eligible: Flags, read_q: Amounts, alpha: Amounts
) -> tuple[int, str] | None:
    """e* of the engines outside C1 that have room for what the turn loads, and its class; null:
    none has."""
    eligible = eligible & state.prefill.with_room(turn)
    short = read_q <= alpha
    for name, members in (("C2", eligible & short), ("C3", eligible & ~short)):
        if members.any():
            return state.prefill.least_busy(members), name
    return None
