"""What D offers: nothing before it is ready, nothing given back before P is done or too late."""

from __future__ import annotations

from second_doubles import KEY, hashes

from dualpath_sglang.secondpath.exports import LEASE_MARGIN_S, NOT_OFFERED, ExportTable
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.protocol import Alive, End, Message, Ready

LEASE_S = 30.0


class Peer:
    """Collects what D sends."""

    def __init__(self) -> None:
        self.got: list[Message] = []

    def send(self, message: Message) -> None:
        self.got.append(message)

    def pages(self) -> list[int]:
        return [r.lo + i for r in self.got if isinstance(r, Ready) for i in range(len(r.slots))]


def table() -> tuple[ExportTable, PageHolds]:
    holds = PageHolds()
    return ExportTable(holds, LEASE_S), holds


def test_pages_are_announced_as_they_become_ready() -> None:
    exports, _ = table()
    peer = Peer()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [10, 11, 12, 13], hashes(4), 0.0)
    exports.want(KEY, 1, 4, peer.send, 0.0)
    assert peer.got == []
    exports.ready(KEY, [0, 1], (), 1.0)
    exports.ready(KEY, [3], (), 2.0)
    assert peer.pages() == [1, 3]
    first = peer.got[0]
    assert isinstance(first, Ready)
    assert first.slots == (11,)
    assert first.hashes == (hashes(4)[1][:16],)
    exports.ready(KEY, [2], (), 3.0)
    exports.end(KEY, "")
    assert peer.got[-1] == End(*KEY, "")


def test_a_peer_that_asks_late_is_told_at_once_what_is_ready() -> None:
    exports, _ = table()
    peer = Peer()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [10, 11, 12], hashes(3), 0.0)
    exports.ready(KEY, [0, 1, 2], ("x", "y", "z"), 0.0)
    exports.end(KEY, "")
    exports.want(KEY, 0, 3, peer.send, 1.0)
    ready = peer.got[0]
    assert isinstance(ready, Ready)
    assert ready.slots == (10, 11, 12)
    assert ready.sums == ("x", "y", "z")
    assert peer.got[1] == End(*KEY, "")


def test_a_peer_that_asks_early_hears_nothing_until_the_request_is_here() -> None:
    exports, _ = table()
    peer = Peer()
    exports.want(KEY, 0, 2, peer.send, 0.0)
    exports.say_alive()
    assert peer.got == []
    exports.open(KEY, 1.0)
    exports.say_alive()
    assert peer.got == [Alive(*KEY)]
    exports.reserve(KEY, 0, [5, 6], hashes(2), 1.0)
    exports.ready(KEY, [0], (), 1.0)
    assert peer.pages() == [0]


def test_pages_are_held_until_the_peer_is_done() -> None:
    exports, holds = table()
    peer = Peer()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5, 6], hashes(2), 0.0)
    exports.want(KEY, 0, 2, peer.send, 0.0)
    exports.ready(KEY, [0, 1], (), 0.0)
    exports.forget(KEY, "")
    assert holds.retain([5, 6]) == {5, 6}
    assert exports.active == 1
    exports.done(KEY)
    assert sorted(holds.take_freeable()) == [5, 6]
    assert exports.active == 0


def test_a_peer_that_says_nothing_keeps_pages_for_the_lease_and_a_margin() -> None:
    exports, holds = table()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5], hashes(1), 0.0)
    exports.want(KEY, 0, 1, Peer().send, 0.0)
    exports.ready(KEY, [0], (), 10.0)
    assert exports.expire(10.0 + LEASE_S + LEASE_MARGIN_S - 0.1) == 0
    assert exports.expire(10.0 + LEASE_S + LEASE_MARGIN_S + 0.1) == 1
    assert holds.held == 0


def test_a_broken_connection_ends_no_lease() -> None:
    exports, holds = table()
    peer = Peer()
    send = peer.send
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5], hashes(1), 0.0)
    exports.want(KEY, 0, 1, send, 0.0)
    exports.ready(KEY, [0], (), 0.0)
    exports.gone(send)
    assert holds.held == 1
    exports.expire(LEASE_S + LEASE_MARGIN_S + 1)
    assert holds.held == 0


def test_a_request_that_ends_early_lets_go_of_what_was_never_announced() -> None:
    exports, holds = table()
    peer = Peer()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5, 6], hashes(2), 0.0)
    exports.want(KEY, 0, 2, peer.send, 0.0)
    exports.ready(KEY, [0], (), 0.0)
    exports.forget(KEY, "aborted")
    assert holds.retain([5, 6]) == {5}
    assert peer.got[-1] == End(*KEY, "aborted")
    exports.ready(KEY, [1], (), 0.0)
    assert peer.pages() == [0]


def test_without_a_peer_everything_goes_with_the_request() -> None:
    exports, holds = table()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5, 6], hashes(2), 0.0)
    exports.ready(KEY, [0, 1], (), 0.0)
    exports.forget(KEY, "")
    assert holds.held == 0
    assert KEY not in exports


def test_a_page_that_moves_is_held_in_its_new_place() -> None:
    exports, holds = table()
    exports.open(KEY, 0.0)
    exports.reserve(KEY, 0, [5, 6], hashes(2), 0.0)
    exports.reserve(KEY, 1, [9], hashes(1, first=1), 0.0)
    assert holds.retain([5, 6, 9]) == {5, 9}


def test_a_room_without_a_plan_is_refused_before_and_after_the_question() -> None:
    exports, _ = table()
    early, late = Peer(), Peer()
    exports.want(KEY, 0, 2, early.send, 0.0)
    exports.refuse(KEY[0])
    assert early.got == [End(*KEY, NOT_OFFERED)]
    exports.done(KEY)
    exports.want(KEY, 0, 2, late.send, 0.0)
    assert late.got == [End(*KEY, NOT_OFFERED)]


def test_who_asks_for_what_is_over_is_told_at_once() -> None:
    exports, _ = table()
    exports.open(KEY, 0.0)
    exports.forget(KEY, "")
    late = Peer()
    exports.want(KEY, 0, 2, late.send, 0.0)
    assert late.got == [End(*KEY, NOT_OFFERED)]


def test_a_connection_that_broke_before_the_request_came_may_ask_again() -> None:
    exports, _ = table()
    first, second = Peer(), Peer()
    send = first.send
    exports.want(KEY, 0, 2, send, 0.0)
    exports.gone(send)
    exports.want(KEY, 0, 2, second.send, 0.0)
    exports.open(KEY, 0.0)
    exports.say_alive()
    assert second.got == [Alive(*KEY)]
