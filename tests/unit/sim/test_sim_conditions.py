"""The paper's resource conditions as numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sim.conditions import aggregate_gain, limits, loads, ratio_range, shape
from dualpath_sglang.contract.errors import ConfigError

PAPER = {"g": 8, "s": 1, "B": 50e9, "memory": 500e9}


def test_the_papers_example_range() -> None:
    assert ratio_range(shape(P=1, D=1, **PAPER)) == (Fraction(1, 7), Fraction(7, 2))


@pytest.mark.parametrize(
    ("P", "D", "expected"),
    [
        (2, 4, (0.25, 0.375, 0.3125, 0.25, 0.2, 0.4)),
        (1, 1, (0.25, 0.25, 0.375, 0.375, 0.2, 0.5)),
        (2, 1, (0.25, 0.1875, 0.5, 0.625, 0.2, 0.7)),
    ],
)
def test_loads_at_saturation(P: int, D: int, expected: tuple[float, ...]) -> None:
    assert tuple(float(x) for x in loads(shape(P=P, D=D, **PAPER)).values()) == expected


@pytest.mark.parametrize(("P", "D", "gain"), [(2, 4, 3), (1, 1, 2), (2, 1, Fraction(3, 2))])
def test_aggregate_bandwidth(P: int, D: int, gain: Fraction) -> None:
    assert aggregate_gain(shape(P=P, D=D, **PAPER)) == gain


def test_the_first_condition_needs_half_of_g() -> None:
    """The paper says s <= g; at s = 5, g = 8 its own inequality 2Bs/g <= B does not hold."""
    one = shape(P=1, D=1, g=8, s=5, B=50e9, memory=1e15)
    assert "prefill NIC reads" in limits(one)
    assert ratio_range(one) is None


whole = st.integers(1, 40)


@given(
    P=whole,
    D=whole,
    g=st.integers(2, 16),
    s=st.fractions(Fraction(1, 4), 8),
    m=st.integers(50, 4000),
)
def test_storage_alone_limits_exactly_within_the_range(
    P: int, D: int, g: int, s: Fraction, m: int
) -> None:
    one = shape(P, D, g, s, 50, m)
    bounds = ratio_range(one)
    inside = bounds is not None and bounds[0] <= Fraction(P, D) <= bounds[1]
    assert inside == (not limits(one))


def test_a_number_that_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="B must be above 0, not 0"):
        shape(P=1, D=1, g=8, s=1, B=0, memory=500e9)
