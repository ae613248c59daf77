"""D's staging and the commit of loads, against a cache double with the calls they make."""

from __future__ import annotations

from typing import Any

import pytest
from second_doubles import KEY, CountingMeter, Memory, Operation, hashes

from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.plan import Plan
from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.adapter import HostRun, Match
from dualpath_sglang.secondpath.exports import ExportTable
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Load, Origin
from dualpath_sglang.secondpath.loads import QUARANTINE_S, Loads
from dualpath_sglang.secondpath.pins import AdmissionPins
from dualpath_sglang.secondpath.requests import Followed, Requests
from dualpath_sglang.secondpath.staging import Limits, Staging

PAGE = 16
PAGES = 64


class Cache:
    """A cache double: `covered` tokens of every prompt are on the host."""

    page_size = PAGE

    def __init__(self) -> None:
        self.covered = 0
        self.node: Any = "node"
        self.ongoing: set[Any] = set()
        self.waiting_for_query: set[Any] = set()
        self.pins: list[Any] = []
        self.dropped: list[Any] = []
        self.has_room = True
        self.committed: list[tuple[Any, int, int]] = []
        self.free = list(range(40, 60))
        self.freed: list[int] = []

    def has_ongoing_prefetch(self, handle: Any) -> bool:
        return handle in self.ongoing

    def is_waiting_for_query(self, handle: Any) -> bool:
        return handle in self.waiting_for_query

    def pop_prefetch_loaded_tokens(self, handle: Any) -> int:
        return 0

    def commit_load(self, op: Any, pages: int, peer_pages: int) -> int:
        self.committed.append((op, pages, peer_pages))
        return pages * PAGE


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The adapter's calls end at the double."""
    made = Cache()

    def match(cache: Cache, req: Any, end: int) -> Match:
        return Match(min(cache.covered, end), 0, cache.node, cache.node)

    def start(cache: Cache, req: Any, found: Match, end: int) -> bool:
        if cache.has_room:
            cache.ongoing.add(req)
        return cache.has_room

    def pin(cache: Cache, node: Any) -> object:
        cache.pins.append(node)
        return node

    def alloc(cache: Cache, count: int) -> list[int] | None:
        taken, cache.free = cache.free[:count], cache.free[count:]
        return taken if len(taken) == count else None

    monkeypatch.setattr(adapter, "match", match)
    monkeypatch.setattr(sglang_pool, "fewest_tokens", lambda cache: PAGE)
    monkeypatch.setattr(adapter, "start_prefetch", start)
    monkeypatch.setattr(adapter, "pin", pin)
    monkeypatch.setattr(adapter, "unpin", lambda cache, node, receipt: cache.pins.remove(node))
    monkeypatch.setattr(adapter, "is_root", lambda cache, node: node == "root")
    monkeypatch.setattr(adapter, "drop_prefetch", lambda cache, h: cache.dropped.append(h))
    monkeypatch.setattr(adapter, "restore_pending", lambda moving: moving == "pending")
    monkeypatch.setattr(sglang_pool, "alloc_pages", alloc)
    monkeypatch.setattr(sglang_pool, "free_pages", lambda cache, pages: cache.freed.extend(pages))
    monkeypatch.setattr(sglang_pool, "move_page", lambda op, index, page, size: None)
    monkeypatch.setattr(
        adapter,
        "host_runs",
        lambda cache, req, end: [
            HostRun(0, list(range(cache.covered // PAGE)), hashes(cache.covered // PAGE))
        ],
    )
    return made


class Decode:
    """A staging with its surroundings."""

    def __init__(self, cache: Cache, pin_pages: int = 32) -> None:
        self.cache = cache
        self.holds = PageHolds()
        self.exports = ExportTable(self.holds, 30.0)
        self.meter = CountingMeter()
        self.progress = 0.0
        limits = Limits(10.0, pin_pages, False)
        pool = Memory(PAGES).pool
        self.staging = Staging(
            cache,
            pool,
            self.exports,
            self.meter,
            limits,
            lambda: self.progress,
            Requests().settle,
            lambda do, *args: do(*args),
        )

    def add(self, handle: str, k: int, now: float = 0.0, deadline_ms: int = 600_000) -> Followed:
        plan = Plan(handle, 60, k, PAGE, ("d:1",), deadline_ms, "print")
        entry = Requests().follow(handle, handle, len(handle), plan, now)
        self.staging.add(entry, now)
        return entry

    def tick(self, *waiting: str, moving: dict[str, str] | None = None, now: float = 0.0) -> None:
        self.staging.tick(dict.fromkeys(waiting), moving or {}, now)


def test_a_request_is_held_until_its_pages_are_here(cache: Cache) -> None:
    decode = Decode(cache)
    decode.add("a", 8)
    assert decode.staging.holds("a")
    decode.tick("a")
    assert cache.ongoing == {"a"}
    assert decode.staging.holds("a")
    cache.ongoing.clear()
    cache.covered = 8 * PAGE
    decode.tick("a")
    assert not decode.staging.holds("a")
    assert cache.pins == ["node"]
    assert decode.meter.fallbacks == {}


def test_pages_that_are_here_already_are_shown_at_once(cache: Cache) -> None:
    cache.covered = 8 * PAGE
    decode = Decode(cache)
    decode.add("a", 8)
    decode.tick("a")
    assert not decode.staging.holds("a")
    assert cache.ongoing == set()
    assert decode.holds.held == 8


def test_pins_last_until_the_prefix_is_on_the_device(cache: Cache) -> None:
    cache.covered = 8 * PAGE
    decode = Decode(cache)
    decode.add("a", 8)
    decode.tick("a")
    decode.tick(moving={"a": "pending"})
    assert cache.pins == ["node"]
    decode.tick(moving={"a": "ready"})
    assert cache.pins == []
    assert decode.staging.pinned_pages == 0
    # P may ask later: it is told and served until the request is gone.
    assert decode.holds.held == 8
    decode.tick()
    assert len(decode.staging) == 0
    assert decode.holds.held == 0
    assert cache.dropped == []


def test_a_request_that_ends_while_it_is_staged_leaves_nothing(cache: Cache) -> None:
    decode = Decode(cache)
    decode.add("a", 8)
    decode.tick("a")
    decode.tick()
    assert cache.dropped == ["a"]
    assert cache.pins == []
    assert decode.exports.active == 0
    assert len(decode.staging) == 0


def test_the_cap_makes_later_requests_wait_in_order(cache: Cache) -> None:
    decode = Decode(cache, pin_pages=20)
    for name in ("a", "b", "c"):
        decode.add(name, 12 if name != "c" else 4)
    decode.tick("a", "b", "c")
    assert cache.ongoing == {"a"}
    assert decode.staging.pinned_pages == 12
    cache.ongoing.clear()
    decode.tick("a", "b", "c", now=1.0)
    decode.tick("b", "c", moving={"a": "ready"}, now=2.0)
    decode.tick("b", "c", now=3.0)
    assert cache.ongoing == {"b", "c"}


def test_a_plan_beyond_the_cap_is_cut(cache: Cache) -> None:
    decode = Decode(cache, pin_pages=5)
    entry = decode.add("a", 8)
    decode.tick("a")
    assert decode.staging.pinned_pages == 5
    assert decode.meter.fallbacks["pin_cap"] == 3
    assert entry.report.fallback == "pin_cap"


def test_a_request_without_room_goes_on_after_the_deadline(cache: Cache) -> None:
    cache.has_room = False
    decode = Decode(cache)
    decode.add("a", 8)
    decode.tick("a", now=9.0)
    assert decode.staging.holds("a")
    decode.tick("a", now=10.5)
    assert not decode.staging.holds("a")
    assert decode.meter.fallbacks["staging_deadline"] == 8


def test_waiting_behind_loads_that_progress_is_no_failure(cache: Cache) -> None:
    cache.has_room = False
    decode = Decode(cache)
    decode.add("a", 8)
    for second in range(60):
        decode.progress = float(second)
        decode.tick("a", now=second + 0.5)
    assert decode.staging.holds("a")


def test_the_plans_own_deadline_is_hard(cache: Cache) -> None:
    cache.has_room = False
    decode = Decode(cache)
    decode.add("a", 8, deadline_ms=3000)
    decode.progress = 5.0
    decode.tick("a", now=3.5)
    assert not decode.staging.holds("a")


def test_an_existence_query_that_hangs_is_given_up(cache: Cache) -> None:
    decode = Decode(cache)
    decode.add("a", 8)
    decode.tick("a")
    cache.waiting_for_query.add("a")
    decode.tick("a", now=11.0)
    assert cache.dropped == ["a"]
    assert not decode.staging.holds("a")


def test_a_full_device_is_tried_again_while_the_prefix_is_pinned(cache: Cache) -> None:
    cache.covered = 8 * PAGE
    decode = Decode(cache)
    assert not decode.staging.may_retry_restore("a", 0.0, 20.0)
    decode.add("a", 8)
    decode.tick("a")
    assert decode.staging.may_retry_restore("a", 1.0, 20.0)
    assert decode.staging.may_retry_restore("a", 20.0, 20.0)
    assert not decode.staging.may_retry_restore("a", 22.0, 20.0)


# --- pins of a prefill engine ------------------------------------------------------------------


def test_a_loaded_prefix_is_kept_until_its_request_is_admitted(cache: Cache) -> None:
    pins = AdmissionPins(cache)
    cache.covered = 100 * PAGE
    assert pins.pin("a", "a", 6 * PAGE, PAGE)
    assert not pins.pin("a", "a", 2 * PAGE, PAGE)
    assert pins.pages == 6
    pins.release("a")
    pins.release("a")
    assert cache.pins == []
    assert pins.pin("b", "b", 5 * PAGE, PAGE)
    pins.clear()
    assert pins.pages == 0


def test_nothing_in_the_host_pool_is_nothing_to_keep(cache: Cache) -> None:
    pins = AdmissionPins(cache)
    cache.node = "root"
    assert not pins.pin("a", "a", 6 * PAGE, PAGE)


# --- loads ------------------------------------------------------------------------------------


class Reader:
    """A store reader double that reads nothing."""

    progress_at = 0.0

    def submit(self, load: Load) -> None:
        pass

    def wake(self) -> None:
        pass


class Prefill:
    """The loads of an engine; of a decode engine with `ends_with_plan`."""

    def __init__(self, cache: Cache, *, ends_with_plan: bool = False) -> None:
        self.cache = cache
        self.clock = ManualClock()
        self.holds = PageHolds()
        self.meter = CountingMeter()
        self.loads = Loads(
            cache, self.holds, self.meter, self.clock, 10.0, ends_with_plan=ends_with_plan
        )
        self.settled: list[tuple[Load, int]] = []
        self.over: list[Load] = []
        self.loads.connect(
            Reader(),  # type: ignore[arg-type]
            lambda load, new: self.settled.append((load, new)),
            self.over.append,
        )

    def load(self, pages: int, peer_pages: int = 0, deadline_ms: int = 600_000) -> Load:
        plan = Plan("p", 60, peer_pages, PAGE, ("d:1",), deadline_ms, "print")
        made = Load(
            Operation(),
            Origin(0, KEY, plan, self.clock.now() + deadline_ms / 1000),
            hashes(pages),
            list(range(pages)),
            peer_pages,
            self.holds,
            self.clock.now(),
        )
        self.loads.add(made)
        return made

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.loads.tick(self.clock.now())


def test_a_load_is_committed_when_its_last_page_is_in(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(4, peer_pages=1)
    load.landed(load.take_store(3), by_peer=False, now=0.0)
    prefill.tick()
    assert cache.committed == []
    assert prefill.over == []
    load.landed(load.take_peer([0]), by_peer=True, now=0.0)
    prefill.tick()
    assert prefill.over == [load]
    assert cache.committed == [(load.owner, 4, 1)]
    assert prefill.settled == [(load, 64)]
    assert len(prefill.loads) == 0


def test_a_peer_that_is_silent_for_the_deadline_is_left(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(4, peer_pages=4)
    prefill.tick(9.0)
    assert load.take_store(9) == []
    prefill.tick(2.0)
    assert load.take_store(2) == [0, 1]
    load.landed([0, 1], by_peer=False, now=self_now(prefill))
    prefill.tick(11.0)
    assert cache.committed == [(load.owner, 2, 0)]
    assert prefill.meter.fallbacks == {"peer_deadline": 4, "store_deadline": 1}


def self_now(prefill: Prefill) -> float:
    return prefill.clock.now()


def test_the_plans_deadline_ends_a_decode_engines_load_with_what_it_has(cache: Cache) -> None:
    decode = Prefill(cache, ends_with_plan=True)
    load = decode.load(4, deadline_ms=2000)
    load.landed(load.take_store(1), by_peer=False, now=0.0)
    decode.tick(2.5)
    assert cache.committed == [(load.owner, 1, 0)]


def test_after_the_plans_deadline_a_prefill_engine_reads_from_the_store(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(3, peer_pages=2, deadline_ms=2000)
    prefill.tick(2.5)
    load.landed(load.take_store(9), by_peer=False, now=self_now(prefill))
    prefill.tick()
    assert cache.committed == [(load.owner, 3, 0)]
    assert prefill.meter.fallbacks == {"plan_deadline": 2}


def test_a_pull_that_hangs_is_given_up_before_its_load_is(cache: Cache) -> None:
    """A read ends within one deadline of its start: the store still has its turn."""
    prefill = Prefill(cache)
    load = prefill.load(2, peer_pages=2)
    prefill.tick(9.0)
    flying = load.take_peer([0, 1])
    prefill.tick(9.0)
    assert not load.settled
    load.refused(flying, "peer_read", now=self_now(prefill))
    prefill.tick(9.0)
    load.landed(load.take_store(9), by_peer=False, now=self_now(prefill))
    prefill.tick()
    assert cache.committed == [(load.owner, 2, 0)]


def test_a_pull_that_never_ends_does_not_keep_its_load(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(2, peer_pages=2)
    load.take_peer([0, 1])
    prefill.tick(20.5)
    assert cache.committed == [(load.owner, 0, 0)]
    assert prefill.holds.retain([0, 1]) == {0, 1}


def test_slots_are_kept_until_their_read_is_over(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(1, peer_pages=1)
    over: list[bool] = []
    prefill.loads.quarantine(
        load.lost(load.take_peer([0]), "peer_read", by_peer=True), lambda: bool(over)
    )
    prefill.tick()
    assert prefill.holds.retain([0]) == {0}
    prefill.tick(2 * QUARANTINE_S)
    assert prefill.holds.quarantined == {0}
    over.append(True)
    prefill.tick()
    assert prefill.holds.quarantined == frozenset()


def test_pages_still_in_flight_at_the_end_stay_out_of_the_pool(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(2)
    flying = load.take_store(2)
    prefill.loads.cancel("handle")
    prefill.tick()
    assert cache.committed == [(load.owner, 0, 0)]
    assert prefill.holds.retain([0, 1]) == {0, 1}
    load.landed(flying, by_peer=False, now=1.0)
    prefill.tick()
    assert sorted(cache.freed) == [0, 1]


def test_a_failed_pull_gets_other_slots_and_keeps_the_old_ones(cache: Cache) -> None:
    prefill = Prefill(cache)
    load = prefill.load(2, peer_pages=2)
    prefill.loads.quarantine(load.lost(load.take_peer([0, 1]), "peer_read", by_peer=True))
    prefill.tick()
    assert load.slots([0, 1]) == [40, 41]
    assert cache.freed == [0, 1]
    assert prefill.holds.retain([0, 1]) == {0, 1}
    load.landed(load.take_store(9), by_peer=False, now=0.0)
    prefill.tick()
    assert cache.committed == [(load.owner, 2, 0)]
    prefill.tick(QUARANTINE_S - 1)
    assert prefill.holds.quarantined == {0, 1}
    prefill.tick(2)
    assert sorted(cache.freed) == [0, 0, 1, 1]


def test_without_other_slots_the_prefix_is_shorter(cache: Cache) -> None:
    prefill = Prefill(cache)
    cache.free = []
    load = prefill.load(3, peer_pages=3)
    load.landed(load.take_peer([0]), by_peer=True, now=0.0)
    load.lost(load.take_peer([1, 2]), "peer_read", by_peer=True)
    prefill.tick()
    assert cache.committed == [(load.owner, 1, 1)]


def test_a_commit_that_fails_is_no_endless_wait(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[Any] = []
    monkeypatch.setattr(sglang_pool, "forget_prefetch", lambda cache, h: forgotten.append(h))

    def broken(*args: Any) -> int:
        raise RuntimeError("tree")

    cache.commit_load = broken  # type: ignore[method-assign]
    prefill = Prefill(cache)
    load = prefill.load(1)
    load.landed(load.take_store(1), by_peer=False, now=0.0)
    with pytest.raises(RuntimeError):
        prefill.tick()
    assert forgotten == ["handle"]
    assert len(prefill.loads) == 0
