"""The highest rate of arriving users at which a stack keeps what was promised.

Each probe replays the whole workload at one rate. From the first rate it goes up or down by twos
until one rate keeps the promise and the next does not, then halves what is between. It also stops
where a rate says nothing more: all sessions run at once already, or hardly two ever do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

MOST_PROBES = 24
RESOLUTION = 1.1
"""The rate found and the lowest one that failed are no further apart."""
ALONE = 0.25
"""Sessions under way on average below which they hardly meet."""


@dataclass(frozen=True)
class Outcome:
    """One probe. `all_at_once`: a higher rate would hardly be another load. `under_way`: sessions
    running on average. `detail` is for the report."""

    rate_per_s: float
    met: bool
    all_at_once: bool
    under_way: float
    detail: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """`rate_per_s` None: none kept the promise. `reason`: why the search ended.

    found: the limit is within RESOLUTION. all_at_once: met even where all sessions of the workload
    run at once, so that the limit is higher. never: missed although sessions hardly met.
    probes: MOST_PROBES were made.
    """

    rate_per_s: float | None
    reason: str
    probes: tuple[Outcome, ...]


Probe = Callable[[float], Awaitable[Outcome]]


async def search(first_rate_per_s: float, probe: Probe) -> Found:
    """Assumes that a higher rate is never easier."""
    probes: list[Outcome] = []
    best: float | None = None
    worst: float | None = None
    rate = first_rate_per_s
    while len(probes) < MOST_PROBES:
        seen = await probe(rate)
        probes.append(seen)
        if seen.met:
            best = rate
            if seen.all_at_once:
                return Found(best, "all_at_once", tuple(probes))
        else:
            worst = rate
            if best is None and seen.under_way < ALONE:
                return Found(None, "never", tuple(probes))
        if best is not None and worst is not None and worst <= best * RESOLUTION:
            return Found(best, "found", tuple(probes))
        rate = _next(best, worst)
    return Found(best, "probes", tuple(probes))


def _next(best: float | None, worst: float | None) -> float:
    if best is not None and worst is not None:
        return sqrt(best * worst)
    return best * 2 if best is not None else (worst or 0.0) / 2
