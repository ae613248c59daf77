"""The best split against every k, and cases that can be worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.scheduling.split import Links, best_split, load_seconds, store_pages

pages = st.integers(0, 60)
queue = st.one_of(st.just(0), st.integers(0, 3000), st.integers(0, 200))
rate = st.one_of(st.sampled_from([1.0, 10.0, 100.0]), st.floats(0.5, 500))
links = st.builds(
    Links, pages, pages, queue, queue, queue, rate, rate, rate, st.sampled_from([0.0, 0.1, 5.0])
)
FAST = 1e12


def by_hand(k: int, n: int, page: int, given_links: Links) -> float:
    """The formula as it is stated, term by term."""
    p, d, q_p, q_d, q_x, b_p, b_d, b_x, fixed = given_links
    terms = [0.0]
    if k > d:
        terms.append((q_d + (k - d) * page) / b_d)
    if n > max(k, p):
        terms.append((q_p + (n - max(k, p)) * page) / b_p)
    if k > p:
        terms.append((q_x + (k - p) * page) / b_x + fixed)
    return max(terms)


@given(pages, st.sampled_from([1, 16, 64]), links, st.one_of(st.none(), pages))
def test_no_other_k_is_better(n: int, page: int, given_links: Links, most: int | None) -> None:
    top = n if most is None else min(n, most)

    def rank(k: int) -> tuple[float, int, int]:
        seconds = by_hand(k, n, page, given_links)
        return seconds, store_pages(k, n, given_links.p, given_links.d), k

    best = min(range(top + 1), key=rank)
    assert best_split(n, page, given_links, most) == best
    assert load_seconds(best, n, page, given_links) == by_hand(best, n, page, given_links)


def equal(**more: float) -> Links:
    """Both read 100 tokens per second, pulls cost nothing."""
    return Links(0, 0, 0, 0, 0, 100.0, 100.0, FAST)._replace(**more)


@pytest.mark.parametrize(
    ("n", "given_links", "k"),
    [
        (10, equal(), 5),
        (0, equal(), 0),
        (1, equal(), 0),
        (10, equal(decode_rate=50.0), 3),
        (10, equal(prefill_rate=50.0), 7),
        (10, equal(decode_queue=40), 3),
        (10, equal(prefill_queue=40), 7),
        (10, equal(decode_queue=1000), 0),
        (10, equal(prefill_queue=1000), 10),
        (10, equal(pull_rate=10.0), 0),
        (10, equal(pull_rate=20.0), 1),
        (10, equal(pull_fixed_s=10.0), 0),
    ],
)
def test_by_hand(n: int, given_links: Links, k: int) -> None:
    assert best_split(n, 10, given_links) == k


def test_a_queue_is_nothing_to_who_does_not_read() -> None:
    """D holds all of it: however long its store queue, P pulls at once. And the other way round."""
    assert best_split(10, 10, equal(d=10, decode_queue=10**9)) == 10
    assert best_split(10, 10, equal(d=6, decode_queue=10**9)) == 6
    assert best_split(10, 10, equal(p=10, prefill_queue=10**9)) == 0
    assert best_split(10, 10, equal(p=10, pull_queue=10**9)) == 0
    assert load_seconds(0, 10, 10, equal(p=10, prefill_queue=10**9)) == 0.0


def test_of_equally_fast_ones_the_one_that_reads_less() -> None:
    """Two pages read by P take as long as one of them pulled from D, which holds it."""
    slow_pull = equal(d=1, pull_rate=50.0)
    assert load_seconds(0, 2, 10, slow_pull) == load_seconds(1, 2, 10, slow_pull)
    assert best_split(2, 10, slow_pull) == 1


def test_d_reads_no_more_than_it_has_room_for() -> None:
    assert best_split(10, 10, equal(), most=2) == 2
    assert best_split(10, 10, equal(), most=0) == 0
    assert best_split(10, 10, equal(), most=99) == 5
