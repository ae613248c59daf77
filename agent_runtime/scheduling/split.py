"""How much of a cached prefix each side reads from the store: the split point k.

    page 0 ── D reads [0, k) ── k ── P reads [k, n) ── n

Every engine reads over its own storage NIC, so with loading as the bottleneck the best split of
equal turns lets each NIC carry the same: k / n = D / (P + D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from agent_runtime.config import SplitPolicy

SPLIT_POLICIES: tuple[str, ...] = get_args(SplitPolicy)


@dataclass(frozen=True)
class Sides:
    """What a split is chosen from. Engines: healthy ones that take plans. Tokens: what the router
    has given the chosen engine to read and has not seen the end of. `turn`: how many times the
    engines have had their turn so far."""

    prefill_engines: int = 1
    decode_engines: int = 1
    prefill_tokens: int = 0
    decode_tokens: int = 0
    turn: int = 0


@dataclass(frozen=True)
class Split:
    """0 <= k <= n, in pages. `reason` is for people."""

    k: int
    reason: str


def choose_split(policy: SplitPolicy, n: int, sides: Sides) -> Split | None:
    """The split of `n` pages; null: send no plan at all."""
    match policy:
        case "split":
            k = even_split(n, sides.prefill_engines, sides.decode_engines)
            fleet = f"{sides.prefill_engines}P{sides.decode_engines}D"
            return Split(k, f"split over {fleet}")
        case "round_robin":
            return _one_path(n, decode=sides.turn % 2 == 1, why="paths in turn")
        case "shorter_queue":
            queues = f"P has {sides.prefill_tokens} tokens to read, D {sides.decode_tokens}"
            return _one_path(n, decode=sides.decode_tokens < sides.prefill_tokens, why=queues)
        case "prefill_path":
            return _one_path(n, decode=False, why="always")
        case "decode_path":
            return _one_path(n, decode=True, why="always")
        case "none":
            return None


def even_split(n: int, prefill_engines: int, decode_engines: int) -> int:
    """n * D / (P + D), rounded; a half goes to P, whose pages take one hop less."""
    engines = prefill_engines + decode_engines
    return (2 * n * decode_engines + engines - 1) // (2 * engines)


def _one_path(n: int, *, decode: bool, why: str) -> Split:
    return Split(n if decode else 0, f"{'decode' if decode else 'prefill'} path ({why})")
