"""Longest prefix in the store: exact with holes, cheap with a memory, honest about changes.

`SetStore` is a stub of the master: a set of object keys that counts what it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.planning.existence import FIRST_BATCH_PAGES, Existence
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
    assert await existence.longest_prefix(chain(n)) == expected
    assert await existence.longest_prefix(chain(n)) == expected


@given(st.data())
async def test_with_a_memory_never_more_than_was_there_within_its_time(data: st.DataObject) -> None:
    store, clock = SetStore(), ManualClock()
    existence = make(store, clock)
    last_seen: dict[str, float] = {}
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
        found = await existence.longest_prefix(chain(12))
        assert all(clock.now() - last_seen[page] < 3.0 for page in chain(found))
        assert found == 12 or not there[found], "no page that is there is left out"
        assert found == 0 or there[found - 1], "the last page counted has just been asked for"


async def test_a_turn_asks_for_the_last_known_page_and_what_is_new() -> None:
    store = SetStore()
    put(store, chain(500))
    existence = make(store)
    assert await existence.longest_prefix(chain(300)) == 300
    store.asked.clear()
    assert await existence.longest_prefix(chain(310)) == 310
    assert store.pages_asked() == [11]


async def test_an_unknown_prompt_costs_one_small_query_and_a_known_one_few() -> None:
    store = SetStore()
    existence = make(store)
    assert await existence.longest_prefix(chain(5000)) == 0
    assert store.pages_asked() == [FIRST_BATCH_PAGES]
    put(store, chain(5000))
    assert await existence.longest_prefix(chain(5000)) == 5000
    assert len(store.pages_asked()) <= 22


async def test_a_cleared_store_is_noticed_at_once() -> None:
    store = SetStore()
    put(store, chain(100))
    existence = make(store)
    assert await existence.longest_prefix(chain(100)) == 100
    store.keys.clear()
    assert await existence.longest_prefix(chain(100)) == 0
    put(store, chain(40))
    assert await existence.longest_prefix(chain(100)) == 40


async def test_memory_expires_and_is_bounded() -> None:
    store, clock = SetStore(), ManualClock()
    put(store, chain(64))
    existence = make(store, clock, max_known=50)
    assert await existence.longest_prefix(chain(64)) == 64
    assert existence.known == 50
    clock.advance(3.0)
    store.asked.clear()
    assert await existence.longest_prefix(chain(64)) == 64
    assert sum(store.pages_asked()) == 64


async def test_a_page_that_comes_later_is_found() -> None:
    store = SetStore()
    put(store, chain(10))
    existence = make(store)
    assert await existence.longest_prefix(chain(12)) == 10
    put(store, chain(12))
    assert await existence.longest_prefix(chain(12)) == 12


async def test_an_unknown_answer_is_a_failure_not_an_absence() -> None:
    store = SetStore()
    store.broken = True
    with pytest.raises(StoreFailure):
        await make(store).longest_prefix(chain(3))
    assert await make(store).longest_prefix([]) == 0
