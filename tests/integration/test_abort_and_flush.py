"""Clients that leave while the caches are flushed: right tokens, no engine ends, books that agree.

A decode engine keeps the memory of an aborted transfer until the prefill engine has said that no
byte is under way. SGLang up to 0.5.22 called itself idle meanwhile, so that a flush freed that
memory, and its release freed it again: two prompts had the same pages, or the engine ended.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from second_path_rig import Duo, duo, plain, prompt

PAGES = 200
"""3,200 tokens, of which a fifth of a second is enough to be in the middle of the transfer."""
LEAVES_S = 0.25
ROUNDS = [pytest.param(20, id="20"), pytest.param(200, id="200", marks=pytest.mark.full)]
CASES = [
    pytest.param(False, False, id="no-plan"),
    pytest.param(True, False, id="plan"),
    pytest.param(True, True, id="plan-arrivals"),
    pytest.param(False, True, id="no-plan-arrivals", marks=pytest.mark.full),
]


@pytest.fixture(scope="module")
def pair(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Duo]:
    with duo(model_dir, tmp_path_factory.mktemp("flushed")) as made:
        yield made


@pytest.mark.parametrize("count", ROUNDS)
@pytest.mark.parametrize(("planned", "arrivals"), CASES)
def test_clients_leave_while_the_caches_are_flushed(
    pair: Duo, reference: str, count: int, planned: bool, arrivals: bool
) -> None:
    before = released(pair)
    others = Arrivals(pair, reference) if arrivals else contextlib.nullcontext()
    with others as served:
        leave(pair, reference, count, planned)
    assert released(pair) > before, "no client left in the middle of a transfer"
    if served is not None:
        assert served.wrong == []
        assert served.right > count // 4
    assert [pair.component(role).state for role in ("prefill", "decode")] == ["ready", "ready"]
    pair.let_go(timeout_s=120)


@pytest.mark.full
def test_the_rounds_see_memory_that_is_freed_twice(
    model_dir: Path, tmp_path: Path, reference: str
) -> None:
    """The mutation: with SGLang's old answer to a flush these rounds fail."""
    fault = {"DUALPATH_ENGINE_FAULT": "deferred_forgotten"}
    with duo(model_dir, tmp_path, decode=fault) as made:
        with pytest.raises((AssertionError, OSError)):
            leave(made, reference, 200, planned=False)
        log = made.component("decode").log
        assert log is not None
        assert "leak detected" in log.read_text(encoding="utf-8", errors="replace")


def leave(made: Duo, reference: str, count: int, planned: bool) -> None:
    """`count` times a client asks and leaves; the caches are flushed all the time. Every tenth time
    another stays for its answer."""
    rng = random.Random(count)
    tokens = prompt(rng, PAGES)
    right = plain(reference, tokens)
    assert made.without_plan(tokens).tokens == right
    made.settle()
    with flushing(made):
        for number in range(1, count + 1):
            after = rng.random() * LEAVES_S
            plan = made.plan(PAGES, rng.randrange(PAGES + 1)) if planned else None
            if number % 2:
                made.hang_up(tokens, plan, after)
            else:
                made.ask(tokens, plan, output=1000, abort_after_s=after)
            if number % 10 == 0:
                answer = made.ask(tokens, plan)
                assert answer.errors == [], (number, answer.errors)
                assert answer.tokens == right, number


@contextlib.contextmanager
def flushing(made: Duo) -> Iterator[None]:
    """Both engines are told to flush again and again; they refuse while they are not idle."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.005):
            for role in ("decode", "prefill"):
                made.flush_if_idle(role)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Arrivals:
    """Other clients, who stay. right: turns with the plain engine's tokens; wrong: the others."""

    def __init__(self, made: Duo, reference: str) -> None:
        self._made = made
        rng = random.Random(77)
        self._prompts = [prompt(rng, pages) for pages in (12, 30, 55)]
        self._right = [plain(reference, tokens) for tokens in self._prompts]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.right = 0
        self.wrong: list[object] = []

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        for number in itertools.cycle(range(len(self._prompts))):
            if self._over.is_set():
                return
            tokens = self._prompts[number]
            pages = len(tokens) // self._made.page
            plan = self._made.plan(pages, pages // 2) if self.right % 2 else None
            answer = self._made.ask(tokens, plan)
            if answer.errors or answer.tokens != self._right[number]:
                self.wrong.append((number, answer))
            else:
                self.right += 1


def released(made: Duo) -> float:
    """Aborted transfers whose memory the decode engine kept for a while, so far."""
    with urllib.request.urlopen(f"{made.url('decode')}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    pattern = r"^sglang:decode_deferred_kv_release_total\{[^}]*\} (\S+)$"
    return sum(map(float, re.findall(pattern, text, flags=re.MULTILINE)))
