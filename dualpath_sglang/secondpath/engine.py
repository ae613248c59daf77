"""The second path inside one engine: one object per scheduler process, ticked once a round.

    arrival -> follow -> (D: staging) ... SGLang queues the operation -> take -> Load
    tick: loads that are over are committed to the tree, D's staging goes on, books are compared

All methods run on the scheduler thread. What they call in other threads never touches the tree.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dualpath_sglang.contract.clock import Clock, SystemClock
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.plan import Plan, clamp, parse_kv_hints
from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.books import Bookkeeper, BooksError
from dualpath_sglang.secondpath.load import Load, Origin
from dualpath_sglang.secondpath.machinery import Machinery
from dualpath_sglang.secondpath.pins import AdmissionPins
from dualpath_sglang.secondpath.probe import Probes
from dualpath_sglang.secondpath.requests import Followed, LoadReport
from dualpath_sglang.secondpath.running import set_running
from dualpath_sglang.sglang_types import Handle, PrefetchOperation, Req, Scheduler

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

log = logging.getLogger("dualpath")

RETRY_S = 0.02
"""Pause between two tries of a planned load that finds no room."""
SWEEP_S = 10.0


class SecondPath(Machinery):
    """Built after the scheduler's queues and cache exist."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: DualPathRadixCache,
        role: str,
        config: EngineConfig,
        clock: Clock | None = None,
    ) -> None:
        """`role`: prefill or decode. Raises StartupError where a port or the transfer engine
        cannot be had."""
        super().__init__(scheduler, cache, role, config, clock or SystemClock())
        self._sweep_at = 0.0
        self.loads.connect(self.reader, self._on_settled, self._on_peer_over)
        self.pins = AdmissionPins(cache)
        self.probes = Probes(self)
        self.books = Bookkeeper(self)
        cache.second_path = self
        set_running(self)

    # --- arrival ------------------------------------------------------------------------------

    def plan_for(self, req: Req) -> Plan | None:
        """The plan that came with a request, made to fit. Never raises for what was sent."""
        counts: dict[str, int] = {}
        plan = parse_kv_hints(adapter.hints_of(req), counts)
        if plan is not None and not adapter.is_plain_text(req):
            counts["not_plain_text"] = 1
            plan = None
        if plan is not None and plan.fingerprint not in ("", self.fingerprint):
            counts["other_fingerprint"] = 1
            plan = None
        if plan is not None:
            plan = clamp(plan, adapter.matchable_tokens(req), self.pool.page_size, counts)
        for reason in counts:
            self.meter.plan(reason)
        if plan is not None:
            self.meter.plan("taken")
        return plan

    def follow(self, req: Req) -> Followed:
        """Before SGLang queues a request."""
        plan = self.plan_for(req)
        handle = adapter.handle_of(req)
        entry = self.requests.follow(req, handle, adapter.room_of(req), plan, self.clock.now())
        if plan is not None and plan.k > 0 and self.client is not None and plan.peer:
            self.client.warm(plan.peer[0])
        elif self.staging is not None and (plan is None or plan.k == 0):
            self.exports.refuse(entry.room)
        return entry

    def stage(self, entry: Followed) -> None:
        """D: its request waits for pre-allocation now."""
        if self.staging is not None and entry.plan is not None and entry.plan.k > 0:
            self.staging.add(entry, self.clock.now())

    # --- loads --------------------------------------------------------------------------------

    def take(self, op: PrefetchOperation) -> bool:
        """Take over an operation that has its pages. False: upstream's thread reads it."""
        if self.faults.fires("divert_error"):
            raise RuntimeError("fault: divert_error")
        entry = self.requests.get(op.handle)
        size, now = self.pool.page_size, self.clock.now()
        first = sglang_pool.first_page(op, size)
        follows = entry is not None and (self.staging is not None or not entry.settled)
        plan, key = (entry.plan, entry.key) if entry is not None and follows else (None, None)
        slots = sglang_pool.op_pages(op, size)
        peer_pages = 0
        if self.client is not None and plan is not None and plan.peer:
            peer_pages = min(max(plan.k - first, 0), len(slots))
        origin = Origin(first, key, plan, entry.give_up_at if entry else float("inf"))
        load = Load(op, origin, op.hash_value, slots, peer_pages, self.holds, now)
        if self.staging is not None and key is not None and key in self.exports:
            self.staging.show_load(load, now)
            load.on_landed = self._show_landed
        if self.books.quarantine_is_full():
            # More failed reads would cost more host pages.
            self.meter.fallback("quarantine_full", load.pages)
            load.seal("quarantine_full")
        self.loads.add(load)
        if peer_pages and not load.settled and self.client is not None and plan is not None:
            self.client.fetch(load, plan.peer[0], first, first + peer_pages)
        return True

    def _show_landed(self, load: Load, pages: list[int]) -> None:
        assert self.staging is not None
        self.staging.show_landed(load, pages, self.clock.now())

    def _on_peer_over(self, load: Load) -> None:
        """D may have its pages back."""
        if self.client is not None and load.origin.plan is not None and load.origin.key:
            self.client.done(load.origin.key, load.origin.plan.peer[0])

    def _on_settled(self, load: Load, new_tokens: int) -> None:
        """After a load was committed."""
        now, pool = self.clock.now(), self.pool
        entry = self.requests.get(load.owner.handle)
        if entry is None:
            return
        pages, by_peer = load.done_pages, load.peer_pages()
        if self.staging is None and entry.req is not None:
            end = (load.origin.first_page + pages) * pool.page_size
            self.pins.pin(entry.handle, entry.req, end, pool.page_size)
            self.requests.settle(entry)
        report = entry.report
        known = max(0, pages * pool.page_size - new_tokens)
        report.peer_tokens += max(0, by_peer * pool.page_size - known)
        report.store_tokens += new_tokens - max(0, by_peer * pool.page_size - known)
        report.peer_bytes += by_peer * pool.bytes_per_page
        report.store_bytes += (pages - by_peer) * pool.bytes_per_page
        report.load_s += now - load.started_at
        report.fallback = report.fallback or load.fallback
        self.meter.took("pull" if by_peer else "load", now - load.started_at)

    # --- every round --------------------------------------------------------------------------

    def tick(self) -> None:
        now = self.clock.now()
        self._tick_loads(now)
        self._tick_staging(now)
        self._tick_retries(now)
        self._tick_probes(now)
        self._tick_books(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            for handle in self.requests.expire(now):
                self.pins.release(handle)

    @guarded("committing loads", lambda *_: None)
    def _tick_loads(self, now: float) -> None:
        self.loads.tick(now)

    @guarded("staging", lambda *_: None)
    def _tick_staging(self, now: float) -> None:
        if self.staging is None:
            return
        if len(self.staging):
            waiting, moving = adapter.decode_queues(self.scheduler)
            self.staging.tick(adapter.live_handles(waiting), adapter.live_handles(moving), now)
        if late := self.exports.expire(now):
            self.meter.fallback("lease_over", late)

    @guarded("asking again for planned loads", lambda *_: None)
    def _tick_retries(self, now: float) -> None:
        """P: a planned load that found no room is asked for again; upstream would recompute."""
        if self.client is None:
            return
        for entry in self.requests.unsettled():
            if self.cache.has_ongoing_prefetch(entry.handle):
                continue
            if self._overdue(entry, now):
                self.requests.settle(entry)
                entry.report.fallback = entry.report.fallback or "no_room"
                self.meter.fallback("no_room")
            elif now >= entry.next_try:
                adapter.ask_for_load(self.scheduler, entry.live)

    @guarded("probes of the doctor", lambda *_: None)
    def _tick_probes(self, now: float) -> None:
        self.probes.tick(now)

    def _tick_books(self, now: float) -> None:
        found = self._compare_books(now)
        if found and self.config.check == "always":
            raise BooksError("DualPath: " + "; ".join(found))

    @guarded("comparing the books", lambda *_: [])
    def _compare_books(self, now: float) -> list[str]:
        return self.books.tick(now)

    # --- questions of the cache and the hooks -------------------------------------------------

    def must_wait(self, handle: Handle) -> bool:
        """P: its planned load has not begun for lack of room."""
        entry = self.requests.get(handle)
        return (
            self.client is not None
            and entry is not None
            and entry.plan is not None
            and not entry.settled
            and not self.cache.has_ongoing_prefetch(handle)
        )

    def may_load(self, handle: Handle, tokens: int) -> bool:
        """P: is there room for a planned load beside those under way and those that wait to be
        admitted? First come first served; a load that is alone always may."""
        if self.client is None or handle not in self.requests:
            return True
        for entry in self.requests.unsettled():
            if entry.handle == handle:
                break
            if not self.cache.has_ongoing_prefetch(entry.handle):
                return False
        kept = self.pins.pages * self.pool.page_size
        taken = kept + sglang_pool.prefetching_tokens(self.cache)
        room = self.pool.pages * self.pool.page_size // 2
        return taken == 0 or taken + tokens <= room

    def is_overdue(self, op: PrefetchOperation) -> bool:
        """An operation that waits for the store's answer for too long; loads end by themselves."""
        return sglang_pool.waits_for_query(op) and (
            self.clock.now() - sglang_pool.asked_at(op) > self.deadline_s
        )

    def _overdue(self, entry: Followed, now: float) -> bool:
        since = max(entry.since, self.reader.progress_at)
        return now - since > self.deadline_s or now > entry.give_up_at

    def after_prefetch(self, entry: Followed) -> None:
        """P: SGLang was asked for a planned request's load. Nothing to load: it is settled."""
        assert entry.plan is not None
        entry.next_try = self.clock.now() + RETRY_S
        if self.cache.has_ongoing_prefetch(entry.handle):
            return
        end = entry.plan.n * self.pool.page_size
        missing = end - adapter.match(self.cache, entry.live, end).covered
        if missing < sglang_pool.fewest_tokens(self.cache):
            self.requests.settle(entry)

    def busy(self) -> bool:
        """Is memory of this engine read or written by a transfer, or kept for one?"""
        staged = self.staging is not None and (len(self.staging) > 0 or self.exports.active > 0)
        return staged or len(self.loads) > 0 or self.holds.held > 0 or self.probes.busy

    def describe(self) -> str:
        """For the log."""
        exports = f", export port {self.server.port}" if self.server is not None else ""
        return (
            f"{self.pool.pages} host pages of {self.pool.bytes_per_page} bytes, "
            f"fingerprint {self.fingerprint}{exports}"
        )

    def report_for(self, req: Req) -> LoadReport:
        """What this request's load brought in; zeros when it had none."""
        handle = adapter.handle_of(req)
        entry = self.requests.get(handle)
        if entry is None:
            return LoadReport()
        self.pins.release(handle)
        if entry.settled or entry.plan is None:
            self.requests.drop(handle)
        return entry.report

    def on_admitted(self, handle: Handle) -> None:
        """Its prefix is being copied to the device, and locked for that by SGLang."""
        self.pins.release(handle)

    def on_abort(self, handle: Handle) -> None:
        self.loads.cancel(handle)
        self.pins.release(handle)
        entry = self.requests.get(handle)
        if entry is not None and self.staging is None:
            self.requests.drop(handle)

    def on_reset(self) -> None:
        """The cache forgets everything; SGLang asks `busy` before."""
        self.loads.clear()
        self.pins.clear()
        self.probes.on_reset()
        if self.staging is not None:
            self.staging.clear("reset")
