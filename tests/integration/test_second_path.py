"""Split reads on real engines: the tokens are the plain engine's for every plan, P pulls what the
plan says, D stages what it says, and the store is read once."""

from __future__ import annotations

import concurrent.futures
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from second_path_rig import BOOKS, CHECKED, Duo, duo, plain, prompt

KV = 4096
"""Bytes per token of the default test model."""
PAGES = 40


SIZES = [
    pytest.param(16, id="page16"),
    pytest.param(64, id="page64", marks=pytest.mark.full),
]


@pytest.fixture(params=SIZES)
def pair16_64(request: pytest.FixtureRequest, model_dir: Path, tmp_path: Path) -> Iterator[Duo]:
    """For one test only: with `small` beside it there would be too many engines."""
    with duo(model_dir, tmp_path, page=request.param) as made:
        yield made


CORES = [
    pytest.param((16, BOOKS), id="page16"),
    pytest.param((64, BOOKS), id="page64", marks=pytest.mark.full),
    pytest.param((16, CHECKED), id="page16-rust", marks=pytest.mark.full),
]
"""Also with SGLang's default tree core, which is what users get."""


@pytest.fixture(scope="module", params=CORES)
def small(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Duo]:
    """Pools of 4,096 and, in host memory, 8,192 tokens, far less than what the test works with."""
    pools = {"max_total_tokens": 4096, "hicache_ratio": 2.0}
    page, books = request.param
    folder = tmp_path_factory.mktemp("small")
    with duo(model_dir, folder, page=page, books=books, **pools) as made:
        yield made


def test_every_split_gives_the_tokens_and_reads_once(pair16_64: Duo, reference: str) -> None:
    made, page = pair16_64, pair16_64.page
    rng = random.Random(page)
    tokens = prompt(rng, PAGES, page=page)
    expected = plain(reference, tokens)
    assert made.without_plan(tokens).tokens == expected
    made.settle()
    for k in (0, 1, PAGES // 2, PAGES - 1, PAGES, rng.randrange(PAGES), rng.randrange(PAGES)):
        made.flush()
        before = made.all_counts()
        answer = made.ask(tokens, made.plan(PAGES, k))
        assert answer.errors == []
        assert answer.tokens == expected, f"k={k}"
        assert answer.prefill["fallback"] == "", f"k={k}"
        moved = made.moved(before)
        of_page = page * KV
        assert moved.get("decode_to_prefill", 0) == k * of_page, f"k={k}"
        assert moved.get("store_to_decode", 0) == k * of_page, f"k={k}"
        assert moved.get("store_to_prefill", 0) == (PAGES - k) * of_page, f"k={k}"
        assert moved.get("prefill_to_decode", 0) == (len(tokens) - k * page) * KV, f"k={k}"
        assert answer.prefill["peer"] == k * page
        assert answer.prefill["storage"] == (PAGES - k) * page
        assert answer.prefill["computed"] == 5
        assert answer.prefill["split_pages"] == k
        assert answer.decode["storage"] == k * page
        assert answer.decode["received"] == len(tokens) - k * page
    assert made.fallbacks("prefill") == made.fallbacks("decode") == {}


def test_the_next_turn_stages_only_what_is_new(small: Duo, reference: str) -> None:
    rng = random.Random(3)
    made, page = small, small.page
    first = prompt(rng, 20, rest=0, page=page)
    second = first + prompt(rng, 10, page=page)
    assert made.without_plan(second).tokens == plain(reference, second)
    made.settle()
    made.flush()
    made.ask([*first, 9], made.plan(20, 20))
    before = made.all_counts()
    answer = made.ask(second, made.plan(30, 25))
    assert answer.tokens == plain(reference, second)
    moved = made.moved(before)
    assert moved.get("store_to_decode", 0) == 5 * page * KV
    assert moved.get("decode_to_prefill", 0) == 5 * page * KV
    assert moved.get("store_to_prefill", 0) == 5 * page * KV


def test_a_plan_that_is_wrong_or_lost_costs_time_only(small: Duo, reference: str) -> None:
    rng = random.Random(4)
    made, page = small, small.page
    tokens = prompt(rng, 20, page=page)
    expected = plain(reference, tokens)
    made.without_plan(tokens[: 12 * page + 1])
    made.settle()
    for n, k in ((20, 20), (20, 16), (20, 5), (12, 6), (3, 2)):
        made.flush()
        assert made.ask(tokens, made.plan(n, k)).tokens == expected, f"n={n} k={k}"
    made.settle()
    made.flush()
    lost_on_d = made.ask(tokens, made.plan(12, 6), decode_plan=made.plan(12, 0))
    made.flush()
    nobody = made.plan(12, 6)
    lost_on_p = made.ask(tokens, None, decode_plan=nobody)
    assert lost_on_d.tokens == lost_on_p.tokens == expected
    assert lost_on_d.seconds < 5


def test_a_prefix_grows_while_it_is_restored(small: Duo, reference: str) -> None:
    """Others stage more of the same prompt meanwhile: each request is given what was announced for
    it, not what has come since, and not what is still on its way to the device."""
    made, page = small, small.page
    rng = random.Random(12)
    tokens = prompt(rng, 30 * 16 // page, rest=0, page=page)
    made.without_plan([*tokens, 7], output=1)
    made.settle()
    cuts = [rng.randrange(2, len(tokens) // page) for _ in range(12)]
    jobs = [tokens[: cut * page] + prompt(rng, 0, rest=rng.randrange(1, 20)) for cut in cuts]
    for _ in range(3):
        made.flush()
        rng.shuffle(jobs)
        plans = [made.plan(n, rng.randrange(n + 1)) for n in (len(j) // page for j in jobs)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(made.ask, jobs, plans))
        assert [a.errors for a in answers] == [[]] * len(jobs)
        assert [a.tokens for a in answers] == [plain(reference, job) for job in jobs]
    made.let_go()


def test_many_sessions_share_prefixes_under_pressure(small: Duo, reference: str) -> None:
    """Pools hold a third of it; a tenth of the plans is lost on one side, some requests end early.

    Every idle round in between compares the books of both host pools and ends the engine for a
    page that is lost or in two places.
    """
    rng = random.Random(11)
    made, page = small, small.page
    bases = [prompt(rng, rng.randrange(30, 70) * 16 // page, rest=0, page=page) for _ in range(20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda base: made.without_plan([*base, 7], output=1), bases))
    made.settle()
    jobs = []
    for _ in range(60):
        base = rng.choice(bases)
        cut = rng.randrange(128 // page, len(base) // page + 1) * page
        jobs.append(base[:cut] + prompt(rng, 0, rest=rng.randrange(1, 40)))

    def run(i: int) -> list[int] | None:
        own = random.Random(i)
        n = (len(jobs[i]) - 1) // page
        k = own.choice([0, 1, n // 2, n - 1, n, own.randrange(n + 1)])
        plan, fate = made.plan(n, k), own.random()
        if fate < 0.15:
            made.ask(jobs[i], plan, output=64, abort_after_s=own.random() * 0.4)
            return None
        if fate < 0.25:
            return made.ask(jobs[i], plan, decode_plan=made.plan(n, 0)).tokens
        if fate < 0.35:
            return made.ask(jobs[i], None, decode_plan=plan).tokens
        return made.ask(jobs[i], plan).tokens

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(run, range(len(jobs))))
    for job, tokens in zip(jobs, outputs, strict=True):
        assert tokens is None or tokens == plain(reference, job)
    made.let_go()
