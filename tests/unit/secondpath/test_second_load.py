"""A load: pages in any order from two sources, exact books of what is in flight."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from second_doubles import make_load

from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Load, State


def test_the_usable_prefix_ends_before_the_first_page_that_is_not_in() -> None:
    load = make_load(4, peer_pages=2)
    load.landed(load.take_store(2), by_peer=False, now=1.0)
    assert load.done_pages == 0
    load.landed(load.take_peer([0]), by_peer=True, now=2.0)
    assert load.done_pages == 1
    assert not load.settled
    load.landed(load.take_peer([1]), by_peer=True, now=3.0)
    assert load.done_pages == 4
    assert load.settled
    assert load.peer_pages() == 2
    assert load.progress_at == 3.0


def test_what_the_peer_does_not_deliver_is_read_from_the_store() -> None:
    load = make_load(4, peer_pages=3)
    woken: list[int] = []
    load.on_store_work = lambda: woken.append(1)
    taken = load.take_peer([0])
    assert load.take_store(9) == [3]
    assert load.leave_peer("peer_lost") == 2
    assert load.take_store(9) == [1, 2]
    load.landed(taken, by_peer=True, now=1.0)
    load.landed([1, 2, 3], by_peer=False, now=1.0)
    assert load.settled
    assert load.fallback == "peer_lost"
    assert load.left["peer_lost"] == 2
    assert load.peer_pages() == 1
    assert woken == [1]


def test_a_page_the_store_lacks_shortens_the_prefix() -> None:
    load = make_load(5)
    pages = load.take_store(3)
    load.landed(pages[:1], by_peer=False, now=1.0)
    load.missing(pages[1:], "store_missing")
    assert load.settled
    assert load.done_pages == 1
    assert load.take_store(9) == []
    assert load.fallback == "store_missing"


def test_a_slot_that_late_bytes_may_reach_is_replaced_and_stays_held() -> None:
    holds = PageHolds()
    load = make_load(2, peer_pages=2, holds=holds)
    lost = load.lost(load.take_peer([0]), "peer_read", by_peer=True)
    assert load.suspects() == [0]
    assert not load.settled
    assert load.replace({0: 55}) == lost == [100]
    assert holds.retain([100]) == {100}
    assert load.slots([0]) == [55]
    load.landed(load.take_store(9), by_peer=False, now=1.0)
    load.landed(load.take_peer([1]), by_peer=True, now=1.0)
    assert load.settled
    assert holds.quarantined == {100}


def test_nothing_counts_after_the_seal() -> None:
    holds = PageHolds()
    load = make_load(3, peer_pages=1, holds=holds)
    seen: list[list[int]] = []
    load.on_landed = lambda _, pages: seen.append(pages)
    pages = load.take_store(1)
    assert load.seal("deadline") == 0
    load.landed(pages, by_peer=False, now=1.0)
    assert load.seal() == 0
    assert seen == []
    assert load.take_peer([0]) == []
    assert load.take_store(1) == []
    assert holds.held == 0


def test_pages_are_announced_before_they_count() -> None:
    """Whoever sees a settled load ends the exchange; a page announced later would be lost."""
    load = make_load(2)
    settled_when_announced: list[bool] = []
    load.on_landed = lambda landed, _: settled_when_announced.append(landed.settled)
    load.landed(load.take_store(9), by_peer=False, now=1.0)
    assert settled_when_announced == [False]
    assert load.settled


def test_wrong_content_goes_to_the_store_in_the_same_slot() -> None:
    load = make_load(2, peer_pages=2)
    load.refused(load.take_peer([0, 1]), "peer_checksum", now=3.0)
    assert load.progress_at == 3.0
    assert load.take_store(9) == [0, 1]
    assert load.fallback == "peer_checksum"


def end_of(load: Load) -> int:
    """Where the usable prefix can still reach."""
    return load._end


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_books_are_right_after_any_course_of_events(
    pages: int, peer_pages: int, rng: random.Random
) -> None:
    holds = PageHolds()
    load = make_load(pages, min(pages, peer_pages), holds)
    flying: list[tuple[bool, list[int]]] = []
    lost: list[int] = []
    spare = 1000
    done = 0
    for _ in range(60):
        event = rng.randrange(9)
        if event == 0:
            flying.append((True, load.take_peer(range(rng.randrange(pages + 1)))))
        elif event == 1:
            flying.append((False, load.take_store(rng.randrange(1, 4))))
        elif event == 2:
            load.leave_peer("lost", None if rng.random() < 0.5 else [rng.randrange(pages)])
        elif event == 3 and load.suspects():
            spare += 1
            load.replace({load.suspects()[0]: spare})
        elif event == 4 and load.suspects():
            load.give_up(load.suspects()[0])
        elif flying:
            by_peer, group = flying.pop(rng.randrange(len(flying)))
            if not group or event <= 6:
                load.landed(group, by_peer=by_peer, now=1.0)
            elif event == 7 and by_peer:
                load.refused(group, "wrong", now=1.0)
            else:
                lost += load.lost(group, "late", by_peer=by_peer)
        assert load.done_pages >= done
        done = load.done_pages if not load.suspects() else done
        held = {s for _, group in flying for s in load.slots(group)} | set(lost)
        assert load.settled == (load.done_pages == end_of(load))
        assert holds.retain([*range(90, 120), *range(1000, 1100)]) == held
    sealed = load.seal()
    assert load.settled
    for by_peer, group in flying:
        load.landed(group, by_peer=by_peer, now=2.0)
    assert load.peer_is_over
    holds.release(lost)
    assert holds.held == 0
    assert sealed <= pages
    assert not load.waits(State.FLYING)


def test_the_peer_is_over_before_the_store_is() -> None:
    load = make_load(4, peer_pages=2)
    first, second = load.take_peer([0]), load.take_peer([1])
    load.landed(first, by_peer=True, now=1.0)
    assert not load.peer_is_over
    load.refused(second, "peer_checksum", now=1.0)
    assert load.peer_is_over
    assert not load.settled
