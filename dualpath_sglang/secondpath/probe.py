"""The engine's part of `dualpath doctor` (`contract.probe`): real bytes over each real path.

One page of the host pool is set apart at start for this. No cached page is evicted, late bytes of
a transfer that failed reach nobody, and a full pool can be probed as well as an empty one.

    order -> (own thread) clear the page, move bytes over one path, hash -> result, asked for later
"""

from __future__ import annotations

import copy
import ctypes
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from dualpath_sglang.contract.probe import (
    HOLD_S,
    PROBE_DEADLINE_S,
    PROBES_KEY,
    SETTING,
    ProbeOrder,
    ProbeResult,
    order_from,
    seeded_parts,
    sum_of,
)
from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath import sglang_pool
from dualpath_sglang.secondpath.faults import faulty
from dualpath_sglang.secondpath.info import hook_facts
from dualpath_sglang.secondpath.pool import HostPool, entries
from dualpath_sglang.secondpath.spans import Span
from dualpath_sglang.secondpath.store_reader import PageRead
from dualpath_sglang.sglang_types import InternalState, Scheduler, SetInternalState

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.engine import SecondPath

log = logging.getLogger("dualpath")

KEPT = 32
"""Results that can still be asked for."""
CONNECT_S, READ_S = 5.0, 5.0


class ProbeError(Exception):
    """A step of a probe failed."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class _Running:
    order: ProbeOrder
    since: float
    over: bool = False


class Probes:
    """Scheduler thread only, but for `_work`."""

    def __init__(self, path: SecondPath) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._results: OrderedDict[str, ProbeResult] = OrderedDict()
        self._running: _Running | None = None
        self._thread: threading.Thread | None = None
        self._holder, self._hold_until = "", 0.0
        self._page: int | None = None
        self.tick(path.clock.now())

    @property
    def reserved(self) -> frozenset[int]:
        """The scratch page: in no other place of the pool's books."""
        return frozenset() if self._page is None else frozenset((self._page,))

    @property
    def busy(self) -> bool:
        """Is the scratch page written, or kept for a peer to read?"""
        moving = self._thread is not None and self._thread.is_alive()
        return moving or self._path.clock.now() < self._hold_until

    def on_reset(self) -> None:
        """All pages of the pool are free again; the next tick sets one apart anew."""
        self._page = None
        self._hold_until = 0.0

    def tick(self, now: float) -> None:
        if self._page is None and (pages := sglang_pool.alloc_pages(self._path.cache, 1)):
            self._page = pages[0]
        running = self._running
        if running is not None and now - running.since > PROBE_DEADLINE_S:
            text = f"not over after {PROBE_DEADLINE_S:g} s"
            self._finish(running, ProbeResult(running.order.id, "failed", "deadline", text))

    def start(self, order: ProbeOrder) -> None:
        """Never blocks; the result can be asked for from now on."""
        now = self._path.clock.now()
        if order.source == "release":
            if order.run == self._holder:
                self._hold_until = 0.0
            return
        refused = self._refused(order, now)
        if refused is not None:
            self._keep(ProbeResult(order.id, "failed", *refused))
            return
        self._keep(ProbeResult(order.id, "running"))
        if order.source == "describe":
            self._keep(ProbeResult(order.id, "done", facts=self._facts()))
            return
        assert self._page is not None
        self._holder = order.run
        self._hold_until = now + HOLD_S if self._path.role == "decode" else 0.0
        self._running = _Running(order, now)
        self._thread = threading.Thread(
            target=self._work, args=(self._running, self._page), name="dualpath-probe", daemon=True
        )
        self._thread.start()

    def trees(self) -> dict[str, Any]:
        with self._lock:
            return {name: result.to_tree() for name, result in self._results.items()}

    def _refused(self, order: ProbeOrder, now: float) -> tuple[str, str] | None:
        if order.source == "describe":
            return None
        if self._thread is not None and self._thread.is_alive():
            return "busy", "an earlier probe has not ended"
        if now < self._hold_until and self._holder != order.run:
            return "busy", "another doctor uses the scratch page"
        if self._page is None:
            return "engine", "the host pool had no page to set apart"
        return None

    def _facts(self) -> dict[str, Any]:
        path = self._path
        return {
            "hooks": hook_facts(),
            "store": sglang_pool.store_facts(path.cache),
            "peer_protocol": path.config.peer_protocol,
            "dead_threads": path.books.dead_threads(),
        }

    # --- in the probe's own thread ------------------------------------------------------------

    def _work(self, running: _Running, page: int) -> None:
        order = running.order
        began = time.monotonic()
        try:
            self._clear(page)
            self._ways()[order.source](order, page)
            sums = tuple(sum_of(part) for part in self._parts(page))
            result = ProbeResult(order.id, "done", sums=sums, slot=page)
        except ProbeError as error:
            result = ProbeResult(order.id, "failed", error.step, str(error))
        except Exception as error:
            log.exception("DualPath: a probe failed")
            text = f"{type(error).__name__}: {error}"
            result = ProbeResult(order.id, "failed", order.source, text)
        self._finish(running, msgspec.structs.replace(result, seconds=time.monotonic() - began))

    def _ways(self) -> dict[str, Callable[[ProbeOrder, int], None]]:
        return {"store": self._from_store, "seed": self._from_seed, "peer": self._from_peer}

    def _from_store(self, order: ProbeOrder, page: int) -> None:
        """As `StoreReader` reads: by the store's own client, into the pool's memory."""
        (read,) = self._path.tap.read([order.name], [page])
        if read is PageRead.ABSENT:
            raise ProbeError("absent", "the store has no such object for it, or a shorter one")
        if read is not PageRead.OK:
            raise ProbeError("store", "the transfer from the storage node broke off")

    def _from_seed(self, order: ProbeOrder, page: int) -> None:
        pool = self._path.pool
        addresses = pool.addresses(page)
        parts = seeded_parts(order.name, len(addresses), pool.page_bytes)
        for at, part in zip(addresses, parts, strict=True):
            ctypes.memmove(at, part, len(part))

    def _from_peer(self, order: ProbeOrder, page: int) -> None:
        """As `Puller` pulls: the export server's hello, then a one-sided read."""
        path = self._path
        if path.client is None:
            raise ProbeError("engine", f"a {path.role} engine pulls from nobody")
        try:
            hello = path.client.reach(order.peer, CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise ProbeError("connect", str(error) or "no answer in time") from error
        here = path.pool
        there = HostPool(hello.base, hello.page_bytes, hello.v_offset, hello.pages, here.page_size)
        reads = entries([Span(page, order.slot, 1)], here, there)
        reading = faulty(path.transport, path.faults).read(hello.session, reads, READ_S)
        if not reading.whole:
            raise ProbeError("transfer", f"a one-sided read from {hello.session} failed")

    def _clear(self, page: int) -> None:
        for at in self._path.pool.addresses(page):
            ctypes.memset(at, 0, self._path.pool.page_bytes)

    def _parts(self, page: int) -> list[bytes]:
        pool = self._path.pool
        return [ctypes.string_at(at, pool.page_bytes) for at in pool.addresses(page)]

    # --- any thread ---------------------------------------------------------------------------

    def _finish(self, running: _Running, result: ProbeResult) -> None:
        """The first result counts: what comes after the deadline is too late."""
        with self._lock:
            if running.over:
                return
            running.over = True
            if self._running is running:
                self._running = None
        self._keep(result)

    def _keep(self, result: ProbeResult) -> None:
        with self._lock:
            self._results[result.id] = result
            while len(self._results) > KEPT:
                self._results.popitem(last=False)


# --- hooks --------------------------------------------------------------------------------------


def _probes_of(scheduler: Scheduler) -> Probes | None:
    found = getattr(getattr(scheduler.tree_cache, "second_path", None), "probes", None)
    return found if isinstance(found, Probes) else None


def around_set_internal_state(
    original: Any, scheduler: Scheduler, recv_req: SetInternalState, *args: Any, **kwargs: Any
) -> Any:
    """Orders are taken out of the request; the rest goes on as it came."""
    return original(scheduler, _without_orders(scheduler, recv_req), *args, **kwargs)


@guarded("starting a probe", lambda scheduler, recv_req: recv_req)
def _without_orders(scheduler: Scheduler, recv_req: SetInternalState) -> SetInternalState:
    orders = [name for name in recv_req.server_args if name.startswith(SETTING)]
    probes = _probes_of(scheduler)
    if not orders or probes is None:
        return recv_req
    for name in orders:
        probes.start(order_from(name))
    rest = copy.copy(recv_req)
    rest.server_args = {k: v for k, v in recv_req.server_args.items() if k not in orders}
    return rest


@guarded("results of probes", lambda result, *args, **kwargs: result)
def after_get_internal_state(
    result: InternalState, scheduler: Scheduler, *args: Any, **kwargs: Any
) -> Any:
    probes = _probes_of(scheduler)
    if probes is not None and (trees := probes.trees()):
        result.internal_state[PROBES_KEY] = trees
    return result
