"""Longest prefix in the store: exact with holes, cheap with a memory, honest about changes.

`SetStore` is a stub of the master: a set of object keys that counts what it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from chains import Listed
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.planning.existence import FIRST_PAGES, NOTHING, Existence
from agent_runtime.planning.store_admin import MAX_KEYS
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.errors import StoreFailure
from dualpath_sglang.contract.pages import KeyLayout

LAYOUT = KeyLayout("m_", ("_0_k", "_0_v", "_1_k", "_1_v"), 16, 2)


class SetStore:
    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.asked: list[list[str]] = []
        self.broken = False

    async def exist(self, keys: Sequence[str]) -> list[bool]:
        assert 0 < len(keys) <= MAX_KEYS
        if self.broken:
            raise StoreFailure("stub")
        self.asked.append(list(keys))
        return [key in self.keys for key in keys]

    def pages_asked(self) -> list[int]:
        counts = [len(keys) // len(LAYOUT.suffixes) for keys in self.asked]
        self.asked.clear()
        return counts


def chain(n: int, name: str = "h") -> list[str]:
    return [f"{name}{i}" for i in range(n)]


async def found(existence: Existence, pages: Sequence[str], kept: int = 0) -> int:
    return (await existence.longest_prefix(Listed(pages, kept))).pages


def make(store: SetStore, clock: ManualClock | None = None, max_known: int = 10**6) -> Existence:
    return Existence(store, LAYOUT, clock=clock or ManualClock(), ttl_s=3.0, max_known=max_known)


def put(store: SetStore, pages: Sequence[str]) -> None:
    store.keys.update(key for page in pages for key in LAYOUT.object_keys(page))


@given(
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 3)), max_size=4),
    st.integers(0, 400),
)
async def test_exact_whatever_objects_are_missing(
    n: int, holes: list[tuple[int, int]], stored: int
) -> None:
    store = SetStore()
    put(store, chain(stored))
    for page, suffix in holes:
        store.keys.discard(LAYOUT.object_keys(f"h{page}")[suffix])
    expected = min([n, stored, *(page for page, _ in holes)])
    existence = make(store)
    assert await found(existence, chain(n)) == expected
    assert await found(existence, chain(n)) == expected


@given(st.data())
async def test_with_a_memory_never_more_than_was_there_within_its_time(data: st.DataObject) -> None:
    store, clock = SetStore(), ManualClock()
    existence = make(store, clock)
    last_seen: dict[str, float] = {}
    known = NOTHING
    for _ in range(data.draw(st.integers(1, 8))):
        for page in chain(12):
            if data.draw(st.booleans()):
                put(store, [page])
            else:
                store.keys.discard(LAYOUT.object_keys(page)[data.draw(st.integers(0, 3))])
        clock.advance(data.draw(st.sampled_from([0.0, 1.0, 2.5, 4.0])))
        there = [all(key in store.keys for key in LAYOUT.object_keys(p)) for p in chain(12)]
        last_seen |= {
            page: clock.now() for page, here in zip(chain(12), there, strict=True) if here
        }
        before = known if data.draw(st.booleans()) else NOTHING
        known = await existence.longest_prefix(
            Listed(chain(12), data.draw(st.integers(0, 12))), before
        )
        n = known.pages
        assert all(clock.now() - last_seen[page] < 3.0 for page in chain(n))
        assert n == 0 or known.expires <= min(last_seen[page] for page in chain(n)) + 3.0
        assert n == 12 or not there[n], "no page that is there is left out"
        assert n == 0 or there[n - 1], "the last page counted has just been asked for"


async def test_a_turn_asks_for_the_last_known_page_and_what_is_new() -> None:
    store = SetStore()
    put(store, chain(500))
    existence = make(store)
    assert await found(existence, chain(300)) == 300
    store.asked.clear()
    assert await found(existence, chain(310)) == 310
    assert store.pages_asked() == [11]


async def test_an_unknown_prompt_costs_one_small_query_and_a_known_one_few() -> None:
    store = SetStore()
    existence = make(store)
    assert await found(existence, chain(5000)) == 0
    assert store.pages_asked() == [FIRST_PAGES]
    assert await found(existence, chain(5000), kept=1000) == 0
    assert store.pages_asked() == [1000 + FIRST_PAGES]
    put(store, chain(5000))
    assert await found(existence, chain(5000)) == 5000
    queries = -(-4968 * len(LAYOUT.suffixes) // MAX_KEYS)
    assert len(store.pages_asked()) == 1 + queries, "first a few, then the rest at once"


async def test_a_cleared_store_is_noticed_at_once() -> None:
    store = SetStore()
    put(store, chain(100))
    existence = make(store)
    assert await found(existence, chain(100)) == 100
    store.keys.clear()
    assert await found(existence, chain(100)) == 0
    put(store, chain(40))
    assert await found(existence, chain(100)) == 40


async def test_memory_expires_and_is_bounded() -> None:
    store, clock = SetStore(), ManualClock()
    put(store, chain(64))
    existence = make(store, clock, max_known=50)
    assert await found(existence, chain(64)) == 64
    assert existence.known == 50
    clock.advance(3.0)
    store.asked.clear()
    assert await found(existence, chain(64)) == 64
    assert sum(store.pages_asked()) == 64


async def test_a_page_that_comes_later_is_found() -> None:
    store = SetStore()
    put(store, chain(10))
    existence = make(store)
    assert await found(existence, chain(12)) == 10
    put(store, chain(12))
    assert await found(existence, chain(12)) == 12


async def test_an_unknown_answer_is_a_failure_not_an_absence() -> None:
    store = SetStore()
    store.broken = True
    with pytest.raises(StoreFailure):
        await found(make(store), chain(3))
    assert await found(make(store), []) == 0


async def test_questions_of_one_wave_are_asked_at_once() -> None:
    class Counting(SetStore):
        running = most = 0

        async def exist(self, keys: Sequence[str]) -> list[bool]:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return await super().exist(keys)

    store = Counting()
    put(store, chain(10_000))
    assert await found(make(store), chain(10_000), kept=9_900) == 10_000
    queries = -(-9_932 * len(LAYOUT.suffixes) // MAX_KEYS)
    assert (store.most, len(store.asked)) == (queries, queries + 1)


async def test_a_failed_question_ends_the_others() -> None:
    class Failing(SetStore):
        ended = 0

        async def exist(self, keys: Sequence[str]) -> list[bool]:
            if "h0_" in keys[0] or keys[0].startswith("m_h0"):
                raise StoreFailure("stub")
            try:
                await asyncio.sleep(60)
            finally:
                self.ended += 1
            return []

    store = Failing()
    with pytest.raises(StoreFailure):
        await found(make(store), chain(5000), kept=5000)
    await asyncio.sleep(0)
    assert store.ended >= 1


async def test_what_the_session_knows_is_not_looked_at_page_by_page() -> None:
    store = SetStore()
    put(store, chain(5000))
    existence = make(store)
    known = await existence.longest_prefix(Listed(chain(5000)))
    again = Listed(chain(5000))
    assert (await existence.longest_prefix(again, known)).pages == 5000
    assert again.asked <= 5
    other = Listed([*chain(10), *chain(4990, "x")])
    assert (await existence.longest_prefix(other, known)).pages == 10, "another chain"
