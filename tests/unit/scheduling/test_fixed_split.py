"""Splits by fixed rules: within bounds, and as even as pages allow."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.scheduling.split import FixedRule, Sides, even_split, fixed_split

pages = st.integers(0, 100_000)
engines = st.integers(1, 200)
sides = st.builds(
    Sides,
    prefill_engines=engines,
    decode_engines=engines,
    prefill_tokens=pages,
    decode_tokens=pages,
    turn=pages,
)
rules = st.sampled_from(get_args(FixedRule))


@given(rules, pages, sides)
def test_any_split_lies_within_the_prefix(rule: FixedRule, n: int, given_sides: Sides) -> None:
    split = fixed_split(rule, n, given_sides)
    assert 0 <= split.k <= n
    assert split.reason
    assert fixed_split(rule, n, given_sides) == split
    if rule != "split":
        assert split.k in (0, n)


@given(pages, engines, engines)
def test_even_split_is_the_nearest_page(n: int, prefill: int, decode: int) -> None:
    exact = Fraction(n * decode, prefill + decode)
    k = even_split(n, prefill, decode)
    assert abs(k - exact) <= Fraction(1, 2)
    assert k <= exact or k - exact < Fraction(1, 2), "a half goes to P"


@given(st.integers(0, 300), engines, engines)
def test_even_split_grows_with_the_prefix(n: int, prefill: int, decode: int) -> None:
    ks = [even_split(m, prefill, decode) for m in range(n + 1)]
    assert all(a <= b <= a + 1 for a, b in pairwise(ks))


@pytest.mark.parametrize(
    ("prefill", "decode", "k"), [(1, 1, 150), (1, 2, 200), (2, 1, 100), (4, 1, 60), (1, 3, 225)]
)
def test_even_split_of_300_pages(prefill: int, decode: int, k: int) -> None:
    assert even_split(300, prefill, decode) == k


def test_round_robin_takes_the_paths_in_turn() -> None:
    assert [fixed_split("round_robin", 10, Sides(turn=i)).k for i in range(4)] == [0, 10, 0, 10]


@given(pages, pages, st.integers(1, 1000))
def test_shorter_queue_goes_where_less_is_to_read(prefill: int, decode: int, n: int) -> None:
    split = fixed_split("shorter_queue", n, Sides(prefill_tokens=prefill, decode_tokens=decode))
    assert split.k == (n if decode < prefill else 0), "a tie goes to P"


def test_one_path_whatever_the_queues() -> None:
    busy = Sides(prefill_tokens=10**6)
    assert fixed_split("prefill_path", 7, busy).k == 0
    assert fixed_split("decode_path", 7, busy).k == 7
