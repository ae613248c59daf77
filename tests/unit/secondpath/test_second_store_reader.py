"""The store reader: in order, in batches, and no exception of the store is its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from second_doubles import make_load, wait_for

from dualpath_sglang.contract.clock import SystemClock
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Load
from dualpath_sglang.secondpath.store_reader import MAX_BATCH, PageRead, StoreReader


class Store:
    """A store double: everything is there unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answer: Callable[[Sequence[str]], list[PageRead]] = lambda names: (
            [PageRead.OK] * len(names)
        )
        self.gate = threading.Event()
        self.gate.set()

    def read(self, names: Sequence[str], pages: Sequence[int]) -> list[PageRead]:
        self.gate.wait(10)
        self.asked.append(list(names))
        return self.answer(names)


class Fixture:
    def __init__(self) -> None:
        self.store = Store()
        self.lost: list[int] = []
        clock = SystemClock()
        # One reader, so that the order of what is asked can be seen.
        self.reader = StoreReader(
            self.store.read, 64, TokenBucket(0.0, clock), clock, self.lost.extend, readers=1
        )

    def submit(self, load: Load) -> Load:
        load.on_store_work = self.reader.wake
        self.reader.submit(load)
        return load


@pytest.fixture
def made() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.store.gate.set()
    fixture.reader.stop()


def test_a_load_is_read_whole_and_in_order(made: Fixture) -> None:
    load = made.submit(make_load(300))
    wait_for(lambda: load.settled)
    assert load.done_pages == 300
    assert [name for batch in made.store.asked for name in batch] == list(load.hashes)
    assert max(map(len, made.store.asked)) <= MAX_BATCH
    assert len(made.store.asked) > 2


def test_first_come_first_served(made: Fixture) -> None:
    made.store.gate.clear()
    first, second = made.submit(make_load(40)), made.submit(make_load(2))
    made.store.gate.set()
    wait_for(lambda: first.settled and second.settled)
    assert made.store.asked[-1] == list(second.hashes)


def test_a_load_that_waits_for_its_peer_lets_others_pass(made: Fixture) -> None:
    waits = made.submit(make_load(4, peer_pages=4))
    passes = made.submit(make_load(3))
    wait_for(lambda: passes.settled)
    assert not waits.settled
    waits.leave_peer("peer_lost")
    wait_for(lambda: waits.settled)
    assert waits.done_pages == 4


def test_an_absent_page_ends_the_prefix(made: Fixture) -> None:
    made.store.answer = lambda names: [PageRead.OK, PageRead.ABSENT, PageRead.OK][: len(names)]
    load = made.submit(make_load(3))
    wait_for(lambda: load.settled)
    assert load.done_pages == 1
    assert load.fallback == "store_missing"
    assert made.lost == []


def test_an_exception_fails_one_batch_and_its_slots_stay_held(made: Fixture) -> None:
    def broken(names: Sequence[str]) -> list[PageRead]:
        raise OSError("the master is gone")

    made.store.answer = broken
    holds = PageHolds()
    load = made.submit(make_load(2, holds=holds))
    wait_for(lambda: load.settled)
    assert load.done_pages == 0
    wait_for(lambda: made.lost == [100, 101])
    assert holds.retain([100, 101]) == {100, 101}
    made.store.answer = lambda names: [PageRead.OK] * len(names)
    after = made.submit(make_load(2))
    wait_for(lambda: after.settled)
    assert after.done_pages == 2
    assert made.reader.alive


def test_a_sealed_load_is_not_read_further(made: Fixture) -> None:
    made.store.gate.clear()
    load = made.submit(make_load(200))
    load.seal("aborted")
    made.store.gate.set()
    other = made.submit(make_load(1))
    wait_for(lambda: other.settled)
    assert sum(map(len, made.store.asked)) < 200


def test_while_one_batch_is_on_its_way_the_next_is_asked_for() -> None:
    both_in = threading.Barrier(2, timeout=5)

    def read(names: Sequence[str], pages: Sequence[int]) -> list[PageRead]:
        both_in.wait()
        return [PageRead.OK] * len(names)

    clock = SystemClock()
    reader = StoreReader(read, 64, TokenBucket(0.0, clock), clock, lambda slots: None)
    load = make_load(16)
    reader.submit(load)
    wait_for(lambda: load.settled)
    assert load.done_pages == 16
    assert reader.alive
    reader.stop()


def test_a_short_object_is_no_success() -> None:
    """Upstream takes any positive number of bytes for a whole object."""
    from dualpath_sglang.secondpath.sglang_pool import _page_read

    assert _page_read([64, 64], [64, 64]) is PageRead.OK
    assert _page_read([64, 63], [64, 64]) is PageRead.ABSENT
    assert _page_read([-704, -704], [64, 64]) is PageRead.ABSENT
    assert _page_read([64, -800], [64, 64]) is PageRead.BROKEN
