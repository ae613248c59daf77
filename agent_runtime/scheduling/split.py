"""How much of a cached prefix each side reads from the store: the split point k.

    page 0 ── D supplies [0, k) ── k ── P reads [k, n) ── n

P needs the pages that it does not hold. Those below k it pulls from D, which reads from the store
what it does not hold either; the rest P reads itself. The three ways run at once, so a load takes
as long as the slowest of them, and the best k makes the slowest as fast as possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

FixedRule = Literal["split", "round_robin", "shorter_queue", "prefill_path", "decode_path"]
Rule = FixedRule | Literal["best", "none"]


class Links(NamedTuple):
    """The three ways of one pair of engines, as they are now.

    p, d: leading pages that P and D hold in memory. Queues: tokens that are to go the same way
    first. Rates: tokens per second, above 0. `pull_fixed_s`: what a pull costs whatever its size.
    """

    p: int
    d: int
    prefill_queue: float
    decode_queue: float
    pull_queue: float
    prefill_rate: float
    decode_rate: float
    pull_rate: float
    pull_fixed_s: float = 0.0


def load_seconds(k: int, n: int, page: int, links: Links) -> float:
    """How long until P has `n` pages of `page` tokens; a way that moves nothing does not count."""
    p, d, q_p, q_d, q_x, b_p, b_d, b_x, fixed = links
    seconds = (q_d + (k - d) * page) / b_d if k > d else 0.0
    if n > k and n > p:
        own = (q_p + (n - (k if k > p else p)) * page) / b_p
        seconds = own if own > seconds else seconds
    if k > p:
        pull = (q_x + (k - p) * page) / b_x + fixed
        seconds = pull if pull > seconds else seconds
    return seconds


def store_pages(k: int, n: int, p: int, d: int) -> int:
    """Pages that both sides together read from the store."""
    return max(0, k - d) + max(0, n - max(k, p))


def best_split(n: int, page: int, links: Links, most: int | None = None) -> int:
    """The k in 0..n with the least `load_seconds`; then fewer store bytes, then the smaller k.

    `most`: the largest k that D has room for.
    """
    p, d = links.p, links.d
    top = n if most is None else min(n, max(0, most))
    if n <= p or top == 0:
        return 0
    # What D and the pull take grows with k, what P's own read takes falls. The best k is next to
    # where they cross, or 0, where P's read is the slowest whatever D does.
    near = math.floor(crossing(n, page, links, top))
    best, least = 0, load_seconds(0, n, page, links)
    for k in range(max(1, near - 1), min(top, near + 1) + 1):
        seconds = load_seconds(k, n, page, links)
        if seconds < least or (
            seconds == least and store_pages(k, n, p, d) < store_pages(best, n, p, d)
        ):
            best, least = k, seconds
    return best


def crossing(n: int, page: int, links: Links, top: int) -> float:
    """Where P's read takes as long as the slower of D's read and the pull, in pages, 0..top."""
    p, d, q_p, q_d, q_x, b_p, b_d, b_x, fixed = links
    prefill_all, per_page = (q_p + n * page) / b_p, page / b_p
    with_read = (prefill_all - (q_d - d * page) / b_d) / (per_page + page / b_d)
    with_pull = (prefill_all - (q_x - p * page) / b_x - fixed) / (per_page + page / b_x)
    # Up to page d nothing is read by D, up to page p nothing is pulled.
    return min(max(with_read, d), max(with_pull, p), top)


@dataclass(frozen=True)
class Sides:
    """What a fixed rule chooses from. Engines: healthy ones that take plans. Tokens: what the
    chosen engine has to read from the store. `turn`: how many times the engines have had their
    turn so far."""

    prefill_engines: int = 1
    decode_engines: int = 1
    prefill_tokens: float = 0
    decode_tokens: float = 0
    turn: int = 0


@dataclass(frozen=True)
class Split:
    """0 <= k <= n, in pages. `reason` is for people."""

    k: int
    reason: str


def fixed_split(rule: FixedRule, n: int, sides: Sides) -> Split:
    """The split of `n` pages by a rule that knows no rates."""
    match rule:
        case "split":
            k = even_split(n, sides.prefill_engines, sides.decode_engines)
            fleet = f"{sides.prefill_engines}P{sides.decode_engines}D"
            return Split(k, f"split over {fleet}")
        case "round_robin":
            return _one_path(n, decode=sides.turn % 2 == 1, why="paths in turn")
        case "shorter_queue":
            p, d = sides.prefill_tokens, sides.decode_tokens
            queues = f"P has {p:.0f} tokens to read, D {d:.0f}"
            return _one_path(n, decode=d < p, why=queues)
        case "prefill_path":
            return _one_path(n, decode=False, why="always")
        case "decode_path":
            return _one_path(n, decode=True, why="always")


def even_split(n: int, prefill_engines: int, decode_engines: int) -> int:
    """n * D / (P + D), rounded; a half goes to P, whose pages take one hop less."""
    engines = prefill_engines + decode_engines
    return (2 * n * decode_engines + engines - 1) // (2 * engines)


def _one_path(n: int, *, decode: bool, why: str) -> Split:
    return Split(n if decode else 0, f"{'decode' if decode else 'prefill'} path ({why})")
