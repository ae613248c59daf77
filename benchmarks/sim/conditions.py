"""The conditions under which no link but the storage NICs limits (paper, 4.2). Pure.

Symbols are the paper's: P, D prefill and decode nodes; g GPUs, and so compute NICs, of a node; B
bytes/s of a compute NIC; s a node's storage NIC in units of B; M bytes/s of a node's DRAM. Only hit
KV counts, all storage NICs are saturated and share the reads evenly.

The first condition is the paper's with a slip mended: what it derives, 2Bs/g <= B, needs s <= g/2,
not s <= g.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dualpath_sglang.contract.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """All above 0. `memory` is M; fractions keep the bounds exact."""

    P: Fraction
    D: Fraction
    g: Fraction
    s: Fraction
    B: Fraction
    memory: Fraction

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}", field=name)


def shape(P: float, D: float, g: float, s: float, B: float, memory: float) -> Shape:
    """Raises ConfigError for a number that is not above 0."""
    return Shape(*(Fraction(value) for value in (P, D, g, s, B, memory)))


def loads(one: Shape) -> dict[str, Fraction]:
    """Each resource's load as a share of what it can carry, when the storage NICs are saturated."""
    share, ratio = one.s / one.g, one.P / one.D
    storage = one.s * one.B / one.memory
    return {
        "prefill NIC reads": 2 * share,
        "prefill NIC writes": share * (1 + 1 / ratio),
        "decode NIC reads": share * (ratio + 2),
        "decode NIC writes": share * (2 * ratio + 1),
        "prefill DRAM": 2 * storage,
        "decode DRAM": (3 + 2 * ratio) * storage,
    }


def limits(one: Shape) -> list[str]:
    """Resources that would be asked for more than they carry; empty: storage alone limits."""
    return [name for name, load in loads(one).items() if load > 1]


def ratio_range(one: Shape) -> tuple[Fraction, Fraction] | None:
    """The least and the most P/D at which storage alone limits; null: none is good.

    P and D of `one` do not matter.
    """
    g, s = one.g, one.s
    if 2 * s > g or 2 * s * one.B > one.memory:
        return None
    least = s / (g - s)
    most = min((g - 2 * s) / s, (g - s) / (2 * s), (one.memory / (one.B * s) - 3) / 2)
    return (least, most) if most > 0 and least <= most else None


def aggregate_gain(one: Shape) -> Fraction:
    """Storage bandwidth with both paths over that of the prefill side alone."""
    return (one.P + one.D) / one.P
