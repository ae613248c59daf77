"""Percentiles and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks of a sorted, non-empty sequence."""
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True)
class Moments:
    mean: float
    median: float
    std: float
    percentiles: dict[int, float]


def moments(values: Iterable[float], percents: Iterable[int]) -> Moments:
    """Of at least one value; `std` is that of the population."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    variance = math.fsum((value - mean) ** 2 for value in ordered) / len(ordered)
    found = {percent: percentile(ordered, percent) for percent in percents}
    return Moments(mean, percentile(ordered, 50), math.sqrt(variance), found)


def summary(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """count, mean, min, p50, p90, p99, max of the values that are there; None without any."""
    ordered = sorted(value for value in values if value is not None)
    names = ("mean", "min", "p50", "p90", "p99", "max")
    if not ordered:
        return {"count": 0, **dict.fromkeys(names)}
    made = (
        math.fsum(ordered) / len(ordered),
        ordered[0],
        percentile(ordered, 50),
        percentile(ordered, 90),
        percentile(ordered, 99),
        ordered[-1],
    )
    return {"count": len(ordered), **{n: round(v, 6) for n, v in zip(names, made, strict=True)}}
