"""Which part of which turn one prefill GPU computes in the next forward. Pure but for the queue.

Turns are taken in the order in which they became ready, until the next would exceed the compute
quota (time in attention), the forward's most tokens, or the HBM that holds their KV. A turn that
fits in part is computed in part: chunked prefill.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from benchmarks.sim.cost import PrefillCost
from benchmarks.sim.turn import Turn

Part = tuple[Turn, int]
"""A turn and how many of its tokens are computed."""


class Limits(NamedTuple):
    """Of one GPU and forward: seconds of attention, new tokens, tokens whose KV HBM holds."""

    attention_s: float
    tokens: int
    held: float


def pack(
    ready: deque[Turn], batch: list[Part], cost: PrefillCost, limits: Limits
) -> tuple[float, int]:
    """Adds one GPU's parts to `batch`, takes what is complete off `ready`; returns seconds of
    attention and tokens. At least one token of the first turn is always taken."""
    attention, tokens, held = 0.0, 0, 0.0
    while ready:
        turn = ready[0]
        if held and held + turn.prompt > limits.held:
            break
        take, cached = min(turn.left, limits.tokens - tokens), turn.prompt - turn.left
        needs = cost.attention_s(cached, take)
        if attention + needs > limits.attention_s:
            take = cost.fits(cached, take, limits.attention_s - attention)
            if not (take or tokens):
                take = 1
            needs = cost.attention_s(cached, take)
        if not take:
            break
        attention += needs
        tokens += take
        held += turn.prompt
        turn.left -= take
        batch.append((turn, take))
        if turn.left:
            break
        ready.popleft()
    return attention, tokens
