"""Probes on an engine's side: the scratch page, its holders, deadlines, and the two hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from second_doubles import PAGE_BYTES, CopyingTransport, Memory, wait_for

from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.probe import (
    PROBE_DEADLINE_S,
    PROBES_KEY,
    SETTING,
    ProbeOrder,
    ProbeResult,
    result_from,
    seeded_parts,
    sum_of,
)
from dualpath_sglang.secondpath import probe, sglang_pool
from dualpath_sglang.secondpath.faults import Faults
from dualpath_sglang.secondpath.ledger import Books, differences
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.probe import Probes
from dualpath_sglang.secondpath.protocol import Hello
from dualpath_sglang.secondpath.store_reader import PageRead

SCRATCH = 3
SEED = "seed"
WANTED = tuple(sum_of(part) for part in seeded_parts(SEED, 2, PAGE_BYTES))


class StubPath:
    """Stands for the second path: pools in ordinary memory, a store of one page."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.clock = ManualClock(100.0)
        self.memory, self.peer = Memory(8), Memory(8)
        self.pool = self.memory.pool
        self.cache = object()
        self.transport = CopyingTransport()
        self.read: Callable[[], PageRead] = lambda: PageRead.OK
        self.tap = SimpleNamespace(read=self._read)
        self.faults = Faults("")
        self.client: Any = SimpleNamespace(reach=self._reach) if role == "prefill" else None
        self.reached: list[str] = []
        self.config = SimpleNamespace(peer_protocol="tcp")
        self.books = SimpleNamespace(dead_threads=lambda: [])

    def _read(self, hashes: Sequence[str], pages: Sequence[int]) -> list[PageRead]:
        result = self.read()
        if result is PageRead.OK:
            put(self.pool, pages[0], hashes[0])
        return [result]

    def _reach(self, peer: str, timeout_s: float) -> Hello:
        self.reached.append(peer)
        there = self.peer.pool
        if peer == "gone:1":
            raise ConnectionError("refused")
        return Hello("f", "n", "peer:2", there.base, there.page_bytes, there.v_offset, there.pages)


def put(pool: HostPool, page: int, seed: str) -> None:
    import ctypes

    for at, part in zip(pool.addresses(page), seeded_parts(seed, 2, PAGE_BYTES), strict=True):
        ctypes.memmove(at, part, PAGE_BYTES)


@pytest.fixture
def alloc(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the pool gives out, and None when it has nothing."""
    given: list[Any] = [[SCRATCH]]
    monkeypatch.setattr(sglang_pool, "alloc_pages", lambda cache, count: given.pop(0))
    return given


@pytest.fixture
def p(alloc: list[Any]) -> StubPath:
    return StubPath("prefill")


@pytest.fixture
def d(alloc: list[Any]) -> StubPath:
    return StubPath("decode")


def ask(probes: Probes, source: Any, run: str = "r1", **what: Any) -> ProbeResult:
    """Start a probe and wait until it is over."""
    order = ProbeOrder(f"id{len(probes.trees())}", run, source, **what)
    probes.start(order)
    wait_for(lambda: shown(probes, order).state != "running")
    if probes._thread is not None:
        probes._thread.join(5)
    return shown(probes, order)


def shown(probes: Probes, order: ProbeOrder) -> ProbeResult:
    found = result_from({"internal_states": [{PROBES_KEY: probes.trees()}]}, order.id)
    assert found is not None
    return found


def test_from_the_store_and_from_a_seed(d: StubPath) -> None:
    probes = Probes(d)  # type: ignore[arg-type]
    for source in ("store", "seed"):
        result = ask(probes, source, name=SEED)
        assert (result.state, result.sums, result.slot) == ("done", WANTED, SCRATCH)


def test_from_a_peer(p: StubPath) -> None:
    put(p.peer.pool, 5, SEED)
    result = ask(Probes(p), "peer", peer="d:1", slot=5)  # type: ignore[arg-type]
    assert result.sums == WANTED
    assert p.reached == ["d:1"]
    assert p.transport.calls == [("peer:2", [PAGE_BYTES, PAGE_BYTES])]


def test_old_bytes_are_no_success(p: StubPath) -> None:
    """The page is cleared before each probe."""
    probes = Probes(p)  # type: ignore[arg-type]
    assert ask(probes, "store", name=SEED).sums == WANTED
    p.tap.read = lambda hashes, pages: [PageRead.OK]  # says so and moves nothing
    assert ask(probes, "store", name=SEED).sums == (sum_of(bytes(PAGE_BYTES)),) * 2


@pytest.mark.parametrize(
    ("read", "step"), [(PageRead.ABSENT, "absent"), (PageRead.BROKEN, "store")]
)
def test_the_store_fails(p: StubPath, read: PageRead, step: str) -> None:
    p.read = lambda: read
    result = ask(Probes(p), "store", name=SEED)  # type: ignore[arg-type]
    assert (result.state, result.step, result.sums) == ("failed", step, ())


def test_the_store_raises(p: StubPath) -> None:
    def fail() -> PageRead:
        raise OSError("no store")

    p.read = fail
    result = ask(Probes(p), "store", name=SEED)  # type: ignore[arg-type]
    assert (result.step, result.error) == ("store", "OSError: no store")


def test_the_peer_fails(p: StubPath, d: StubPath, alloc: list[Any]) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    assert ask(probes, "peer", peer="gone:1").step == "connect"
    p.transport.fails = True
    assert ask(probes, "peer", peer="d:1").step == "transfer"
    p.transport.fails = False
    outside = ask(probes, "peer", peer="d:1", slot=8)
    assert (outside.step, "pages 8+1" in outside.error) == ("peer", True)
    alloc.append([SCRATCH])
    assert "pulls from nobody" in ask(Probes(d), "peer", peer="d:1").error  # type: ignore[arg-type]


def test_d_keeps_the_bytes_for_its_doctor_and_not_for_ever(d: StubPath) -> None:
    probes = Probes(d)  # type: ignore[arg-type]
    ask(probes, "seed", name=SEED)
    assert probes.busy
    assert ask(probes, "seed", run="r2", name="x").step == "busy"
    assert d.memory.page(SCRATCH) == b"".join(seeded_parts(SEED, 2, PAGE_BYTES))
    probes.start(ProbeOrder("any", "r2", "release"))
    assert probes.busy
    probes.start(ProbeOrder("any", "r1", "release"))
    assert not probes.busy
    assert ask(probes, "seed", run="r2", name="x").state == "done"
    d.clock.advance(10.1)
    assert not probes.busy


def test_p_keeps_nothing(p: StubPath) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    ask(probes, "seed", name=SEED)
    assert not probes.busy


def test_a_probe_that_hangs_ends_by_its_deadline_and_its_page_stays_taken(p: StubPath) -> None:
    leave = threading.Event()
    p.read = lambda: PageRead.OK if leave.wait(5) else PageRead.BROKEN
    probes = Probes(p)  # type: ignore[arg-type]
    order = ProbeOrder("slow", "r1", "store", SEED)
    probes.start(order)
    p.clock.advance(PROBE_DEADLINE_S + 0.1)
    probes.tick(p.clock.now())
    assert (shown(probes, order).state, shown(probes, order).step) == ("failed", "deadline")
    assert probes.busy
    assert ask_at_once(probes).step == "busy"
    leave.set()
    wait_for(lambda: not probes.busy)
    assert shown(probes, order).step == "deadline"  # what comes too late does not count
    assert ask(probes, "store", name=SEED).state == "done"


def ask_at_once(probes: Probes) -> ProbeResult:
    order = ProbeOrder("next", "r1", "seed", SEED)
    probes.start(order)
    return shown(probes, order)


def test_after_a_flush_a_page_is_set_apart_anew(p: StubPath, alloc: list[Any]) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    assert probes.reserved == {SCRATCH}
    probes.on_reset()
    assert probes.reserved == set()
    assert ask_at_once(probes).step == "engine"
    alloc += [None, [6]]
    for expected in (set(), {6}):
        probes.tick(p.clock.now())
        assert probes.reserved == expected
    assert ask(probes, "seed", name=SEED).slot == 6


def test_the_page_has_its_place_in_the_books() -> None:
    def books(free: set[int]) -> list[str]:
        none: set[int] = set()
        return differences(Books(4, free, none, none, none, none, 0, reserved=frozenset({3})))

    assert books({0, 1, 2}) == []
    assert "free and set apart" in books({0, 1, 2, 3})[0]


def test_results_are_not_kept_for_ever(p: StubPath) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    for i in range(100):
        probes.start(ProbeOrder(str(i), "r", "release"))
        probes._keep(ProbeResult(str(i), "done"))
    assert len(probes.trees()) == probe.KEPT
    assert "99" in probes.trees()


# --- hooks and messages -------------------------------------------------------------------------


def scheduler_of(probes: Probes | None) -> Any:
    cache = SimpleNamespace(second_path=SimpleNamespace(probes=probes))
    return SimpleNamespace(tree_cache=cache)


def set_state(scheduler: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What SGLang's own method gets."""
    seen: list[Any] = []
    request = SimpleNamespace(server_args=settings)

    def upstream(scheduler: Any, recv_req: Any) -> str:
        seen.append(recv_req.server_args)
        return "answer"

    assert probe.around_set_internal_state(upstream, scheduler, request) == "answer"
    assert request.server_args == settings
    settings_seen: dict[str, Any] = seen[0]
    return settings_seen


def test_orders_are_taken_out_and_the_rest_goes_on(p: StubPath) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    order = ProbeOrder("one", "r", "seed", SEED)
    other = {"pp_max_micro_batch_size": 2}
    assert set_state(scheduler_of(probes), {**other, **order.to_settings()}) == other
    wait_for(lambda: shown(probes, order).state == "done")
    assert set_state(scheduler_of(probes), other) == other


def test_without_a_second_path_and_for_nonsense_upstream_decides(p: StubPath) -> None:
    order = ProbeOrder("one", "r", "seed", SEED).to_settings()
    assert set_state(scheduler_of(None), order) == order
    bad = {SETTING + "{}": 1}
    assert set_state(scheduler_of(Probes(p)), bad) == bad  # type: ignore[arg-type]


def test_results_leave_with_the_engines_state(p: StubPath) -> None:
    probes = Probes(p)  # type: ignore[arg-type]
    result = SimpleNamespace(internal_state={"x": 1})
    probe.after_get_internal_state(result, scheduler_of(probes))
    assert result.internal_state == {"x": 1}
    ask(probes, "seed", name=SEED)
    probe.after_get_internal_state(result, scheduler_of(probes))
    assert list(result.internal_state) == ["x", PROBES_KEY]
