"""P pulls from D over a real socket: the protocol's both ends, with memory that is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from second_doubles import KEY, CopyingTransport, CountingMeter, Memory, Operation, hashes, wait_for

from dualpath_sglang.contract.clock import SystemClock
from dualpath_sglang.secondpath import pull, puller
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.checksum import page_sums
from dualpath_sglang.secondpath.export_server import ExportServer
from dualpath_sglang.secondpath.exports import ExportTable
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Load, Origin, State
from dualpath_sglang.secondpath.protocol import Hello
from dualpath_sglang.secondpath.pull import PeerClient
from dualpath_sglang.secondpath.puller import Puller, Tools

PAGES = 16


class Rig:
    """One D and one P."""

    def __init__(self, lease_s: float = 30.0) -> None:
        self.there, self.here = Memory(PAGES), Memory(PAGES)
        for page in range(PAGES):
            self.there.fill(page, 10 * page)
        self.d_holds, self.p_holds = PageHolds(), PageHolds()
        self.table = ExportTable(self.d_holds, lease_s)
        self.nonce = 0
        self.server = self.serve(0)
        self.transport = CopyingTransport()
        self.meter = CountingMeter()
        self.lost: list[tuple[list[int], Callable[[], bool] | None]] = []
        clock = SystemClock()
        tools = Tools(
            self.transport,
            self.here.pool,
            TokenBucket(0.0, clock),
            clock,
            self.meter,
            lambda slots, is_over: self.lost.append((slots, is_over)),
            limit_s=10.0,
        )
        self.client = PeerClient("print", lambda address: Puller(address, tools), clock)

    def serve(self, port: int, fingerprint: str = "print") -> ExportServer:
        self.nonce += 1
        pool = self.there.pool
        hello = Hello(
            fingerprint,
            f"boot{self.nonce}",
            "copying:1",
            pool.base,
            pool.page_bytes,
            pool.v_offset,
            pool.pages,
        )
        return ExportServer(self.table, hello, "127.0.0.1", port)

    @property
    def peer(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def offer(self, pages: int, slots: list[int], sums: tuple[str, ...] = ()) -> None:
        self.table.open(KEY, 0.0)
        now = SystemClock().now()
        self.table.reserve(KEY, 0, slots, hashes(pages), now)
        self.table.ready(KEY, range(pages), sums, now)

    def load(self, pages: int, names: list[str] | None = None) -> Load:
        return Load(
            Operation(),
            Origin(0, KEY),
            names or hashes(pages),
            list(range(pages)),
            pages,
            self.p_holds,
            0.0,
        )

    def stop(self) -> None:
        self.client.stop()
        self.server.stop()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.stop()


def test_pages_arrive_and_are_given_back(rig: Rig) -> None:
    rig.offer(4, [7, 8, 9, 3])
    load = rig.load(4)
    rig.client.fetch(load, rig.peer, 0, 4)
    wait_for(lambda: load.settled)
    assert [rig.here.page(i) for i in range(4)] == [rig.there.page(i) for i in (7, 8, 9, 3)]
    assert load.peer_pages() == 4
    assert rig.meter.tokens["decode_to_prefill"] == 4 * 16
    assert rig.meter.bytes["decode_to_prefill"] == 4 * 128
    # 7, 8, 9 are neighbours here and there: two entries for K and V, and two for page 3.
    assert [len(lengths) for _, lengths in rig.transport.calls] == [4]
    rig.client.done(KEY, rig.peer)
    wait_for(lambda: rig.table.active == 0)
    assert rig.d_holds.held == 0
    assert rig.p_holds.held == 0


def test_pages_are_pulled_while_others_are_still_read_from_the_store(rig: Rig) -> None:
    load = rig.load(3)
    rig.client.fetch(load, rig.peer, 0, 3)
    rig.table.open(KEY, 0.0)
    rig.table.reserve(KEY, 0, [4, 5, 6], hashes(3), SystemClock().now())
    rig.table.ready(KEY, [0], (), SystemClock().now())
    wait_for(lambda: load.done_pages == 1)
    assert not load.settled
    rig.table.ready(KEY, [1, 2], (), SystemClock().now())
    wait_for(lambda: load.settled)
    assert load.peer_pages() == 3


def test_pages_of_another_prompt_are_not_taken(rig: Rig) -> None:
    rig.offer(3, [1, 2, 3])
    names = hashes(3)
    names[1] = "f" * 64
    load = rig.load(3, names)
    rig.client.fetch(load, rig.peer, 0, 3)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    wait_for(lambda: load.done_pages == 1)
    assert load.take_store(9) == [1]
    assert load.fallback == "peer_hash"


def test_bytes_that_changed_after_they_were_announced_are_refused(rig: Rig) -> None:
    sums = page_sums(rig.there.pool, [1, 2, 3])
    rig.there.fill(2, 99)
    rig.offer(3, [1, 2, 3], sums)
    load = rig.load(3)
    rig.client.fetch(load, rig.peer, 0, 3)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    assert load.take_store(9) == [1]
    assert load.fallback == "peer_checksum"
    assert rig.meter.fallbacks["peer_checksum"] == 1


def test_what_d_cannot_show_is_read_from_the_store(rig: Rig) -> None:
    rig.offer(2, [1, 2])
    rig.table.end(KEY, "staging_short")
    load = rig.load(4)
    rig.client.fetch(load, rig.peer, 0, 4)
    wait_for(lambda: load.done_pages == 2)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    assert load.take_store(9) == [2, 3]
    assert load.fallback == "staging_short"


def test_a_read_that_is_given_up_keeps_its_slots_until_it_is_over(rig: Rig) -> None:
    rig.transport.fails, rig.transport.over = True, False
    rig.offer(2, [1, 2])
    load = rig.load(2)
    rig.client.fetch(load, rig.peer, 0, 2)
    wait_for(lambda: bool(rig.lost))
    (slots, is_over), *_ = rig.lost
    assert slots == [0, 1]
    assert load.suspects() == [0, 1]
    assert rig.p_holds.retain([0, 1]) == {0, 1}
    assert is_over is not None
    assert not is_over()
    rig.transport.over = True
    assert is_over()


def test_after_a_failed_read_all_the_rest_comes_from_the_store(rig: Rig) -> None:
    rig.transport.fails = True
    rig.offer(2, [1, 2])
    load = rig.load(4)
    rig.client.fetch(load, rig.peer, 0, 4)
    wait_for(lambda: load.fallback == "peer_read")
    wait_for(lambda: load.peer_is_over)
    assert load.take_store(9) == [0, 1, 2, 3]
    assert rig.lost == []
    assert rig.meter.fallbacks["peer_read"] == 2


def test_many_pages_are_read_in_portions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puller, "READ_BYTES", 3 * rig.here.pool.bytes_per_page)
    rig.offer(7, [1, 2, 3, 4, 5, 6, 7])
    load = rig.load(7)
    rig.client.fetch(load, rig.peer, 0, 7)
    wait_for(lambda: load.settled)
    assert [sum(lengths) // rig.here.pool.bytes_per_page for _, lengths in rig.transport.calls] == [
        3,
        3,
        1,
    ]


def test_a_peer_that_stays_away_is_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "FORGET_S", 0.05)
    load = rig.load(2)
    rig.client.fetch(load, "127.0.0.1:1", 0, 2)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    wait_for(lambda: not rig.client._peers)
    assert rig.client.alive


def test_a_read_that_ends_after_its_lease_does_not_count() -> None:
    rig = Rig(lease_s=0.0)
    try:
        rig.offer(2, [1, 2])
        load = rig.load(2)
        rig.client.fetch(load, rig.peer, 0, 2)
        wait_for(lambda: load.fallback == "peer_read")
        assert load.done_pages == 0
        assert rig.lost == []
    finally:
        rig.stop()


def test_nobody_at_the_address(rig: Rig) -> None:
    load = rig.load(2)
    rig.client.fetch(load, "127.0.0.1:1", 0, 2)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    assert load.fallback == "peer_unreachable"


def test_a_peer_with_another_model_is_not_asked(rig: Rig) -> None:
    other = rig.serve(0, fingerprint="another")
    load = rig.load(2)
    rig.client.fetch(load, f"127.0.0.1:{other.port}", 0, 2)
    wait_for(lambda: load.waits(State.WAIT_STORE))
    assert load.fallback == "peer_unreachable"
    assert rig.transport.calls == []
    other.stop()


def test_a_peer_that_dies_frees_its_loads_at_once(rig: Rig) -> None:
    load = rig.load(2)
    rig.client.fetch(load, rig.peer, 0, 2)
    wait_for(lambda: KEY in rig.table)
    rig.server.stop()
    wait_for(lambda: load.waits(State.WAIT_STORE))
    assert load.fallback == "peer_lost"
    rig.server = rig.serve(0)


def test_a_peer_that_restarted_on_its_port_is_met_anew(rig: Rig) -> None:
    rig.offer(1, [1])
    first = rig.load(1)
    rig.client.fetch(first, rig.peer, 0, 1)
    wait_for(lambda: first.settled)
    port = rig.server.port
    rig.server.stop()
    rig.table.done(KEY)
    rig.server = rig.serve(port)
    rig.offer(1, [5])

    def fetched() -> bool:
        load = rig.load(1)
        rig.client.fetch(load, rig.peer, 0, 1)
        wait_for(lambda: load.settled or load.waits(State.WAIT_STORE))
        return load.settled

    wait_for(fetched)
    assert rig.transport.renewed == 1
    assert rig.here.page(0) == rig.there.page(5)


def test_slots_outside_the_peers_pool_are_no_end_of_the_thread(rig: Rig) -> None:
    rig.offer(1, [PAGES + 4])
    load = rig.load(1)
    rig.client.fetch(load, rig.peer, 0, 1)
    wait_for(lambda: rig.lost == [([0], None)])
    assert rig.client.alive
    assert rig.transport.calls == []


def test_garbage_on_the_export_port_closes_one_connection(rig: Rig) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", rig.server.port)) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        garbage.settimeout(5)
        assert garbage.recv(10) == b""
    rig.offer(1, [1])
    load = rig.load(1)
    rig.client.fetch(load, rig.peer, 0, 1)
    wait_for(lambda: load.settled)
