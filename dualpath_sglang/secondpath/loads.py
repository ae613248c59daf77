"""The loads of one engine from their start to the tree, and the slots that late bytes may reach."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.secondpath import sglang_pool
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Load, State
from dualpath_sglang.secondpath.meter import Meter
from dualpath_sglang.secondpath.store_reader import StoreReader
from dualpath_sglang.sglang_types import Handle

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

log = logging.getLogger("dualpath")

QUARANTINE_S = 60.0
"""After a failed read from the store, whose end cannot be asked for: twice Mooncake's own limit
of a transfer (`MC_TRANSFER_TIMEOUT`, 30 s)."""


class Loads:
    """Scheduler thread only, but for `quarantine`."""

    def __init__(
        self,
        cache: DualPathRadixCache,
        holds: PageHolds,
        meter: Meter,
        clock: Clock,
        deadline_s: float,
        *,
        ends_with_plan: bool,
    ) -> None:
        """`deadline_s`: a load without a page for so long goes on without its peer, or is over
        with what it has; waiting behind loads that progress does not count. At the plan's own
        deadline a load is over too (`ends_with_plan`: decode engines) or leaves its peer."""
        self._cache = cache
        self._holds = holds
        self._meter = meter
        self._clock = clock
        self._deadline_s = deadline_s
        self._ends_with_plan = ends_with_plan
        self._loads: list[Load] = []
        self._with_peer: list[Load] = []
        self._lost: list[tuple[Callable[[], bool], list[int]]] = []

    def connect(
        self,
        reader: StoreReader,
        on_settled: Callable[[Load, int], None],
        on_peer_over: Callable[[Load], None],
    ) -> None:
        """`on_settled` gets a committed load and its tokens that were new to the tree,
        `on_peer_over` a load that reads nothing from its peer any more."""
        self._reader = reader
        self._on_settled = on_settled
        self._on_peer_over = on_peer_over

    def add(self, load: Load) -> None:
        load.on_store_work = self._reader.wake
        self._loads.append(load)
        if not load.peer_is_over:
            self._with_peer.append(load)
        self._reader.submit(load)

    def quarantine(self, slots: list[int], is_over: Callable[[], bool] | None = None) -> None:
        """Slots stay held until no byte of a failed transfer can arrive: when `is_over` says so,
        without it after QUARANTINE_S. Any thread."""
        until = self._clock.now() + QUARANTINE_S
        if slots:
            self._lost.append((is_over or (lambda: self._clock.now() >= until), slots))

    def cancel(self, handle: Handle) -> None:
        """The request is gone: its load counts no page from now on, its pages go at the next
        tick."""
        for load in self._loads:
            if load.owner.handle == handle:
                load.seal("aborted")

    def clear(self) -> None:
        for load in self._loads:
            load.seal("reset")
        self._loads.clear()

    def tick(self, now: float) -> None:
        self._end_quarantine()
        for load in [load for load in self._with_peer if load.peer_is_over]:
            # It may still read its other pages from the store for long.
            self._with_peer.remove(load)
            self._on_peer_over(load)
        for load in list(self._loads):
            self._mend(load, now)
            self._check_deadline(load, now)
            if load.settled:
                self._loads.remove(load)
                self._commit(load)

    def owned(self) -> set[int]:
        """Pages of loads that are not over."""
        return {slot for load in self._loads for slot in load.all_slots()}

    def __len__(self) -> int:
        return len(self._loads)

    def _end_quarantine(self) -> None:
        for entry in list(self._lost):
            is_over, slots = entry
            if is_over():
                self._lost.remove(entry)
                self._holds.release(slots)
        sglang_pool.free_pages(self._cache, self._holds.take_freeable())

    def _mend(self, load: Load, now: float) -> None:
        """Other slots for pages whose slots a failed pull may still write."""
        pages = load.suspects()
        if not pages or load.settled:
            return
        load.progress_at = now
        slots = sglang_pool.alloc_pages(self._cache, len(pages))
        if slots is None:
            load.give_up(min(pages))
            return
        size = self._cache.page_size
        for page, slot in zip(pages, slots, strict=True):
            sglang_pool.move_page(load.owner, page, slot, size)
        old = load.replace(dict(zip(pages, slots, strict=True)))
        sglang_pool.free_pages(self._cache, old)

    def _check_deadline(self, load: Load, now: float) -> None:
        if load.settled:
            return
        if now > load.origin.give_up_at:
            if self._ends_with_plan:
                self._meter.fallback("plan_deadline")
                load.seal("plan_deadline")
                return
            if load.waits(State.WAIT_PEER):
                load.leave_peer("plan_deadline")
        since = max(load.progress_at, load.started_at)
        if load.waits(State.WAIT_STORE):
            since = max(since, self._reader.progress_at)
        if now - since <= self._deadline_s:
            return
        if load.leave_peer("peer_deadline"):
            load.progress_at = now
        elif not load.is_pulled or now - since > 2 * self._deadline_s:
            # A read from the peer ends by itself within another deadline.
            self._meter.fallback("store_deadline")
            load.seal("store_deadline")

    def _commit(self, load: Load) -> None:
        pages = load.seal()
        for reason, count in load.left.items():
            self._meter.fallback(reason, count)
        if pages < load.pages and load.fallback in ("store_missing", "store_broken"):
            self._meter.fallback(load.fallback, load.pages - pages)
        try:
            new_tokens = self._cache.commit_load(load.owner, pages, load.peer_pages())
        except Exception:
            sglang_pool.forget_prefetch(self._cache, load.owner.handle)
            self._meter.fallback("commit_error", load.pages)
            raise
        self._on_settled(load, new_tokens)
