"""A decode engine's part of a plan: read [0, k) into its host pool, show it to P, keep it.

    WAITING --room, anchor--> LOADING --load over--> STAGED --on the device--> RESTORED
       '--------all of it is here already------------^

Pages are pinned while STAGED, and shown to P until the request has left the engine's queues.

A request that is WAITING or LOADING is held out of pre-allocation, so that what D announces to P
is what it has. Everything here runs on the scheduler thread, once a round, but checksums: those of
pages that were here already take a thread of their own, of others the one that read them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.checksum import page_sums
from dualpath_sglang.secondpath.exports import ExportTable
from dualpath_sglang.secondpath.load import Key, Load
from dualpath_sglang.secondpath.meter import Meter
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.requests import Followed
from dualpath_sglang.sglang_types import DecodeRequest, Handle, LockReceipt, Node

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

log = logging.getLogger("dualpath")


SUM_BYTES = 32 << 20
"""Pages that were here already are announced in portions: P reads one while the next is summed."""
TRY_S = 0.005
"""Pause between two tries to begin: each matches the whole prompt."""


class Step(Enum):
    WAITING = "waiting"
    LOADING = "loading"
    STAGED = "staged"
    RESTORED = "restored"


@dataclass
class Staged:
    """One request. end: tokens of its prompt to stage. since: start of the present step."""

    followed: Followed
    end: int
    step: Step
    since: float
    shown: bool = False
    next_try: float = 0.0
    pinned_node: Node | None = None
    pin_receipt: LockReceipt | None = None
    restore_since: float = 0.0


@dataclass(frozen=True)
class Limits:
    """deadline_s: without progress. pin_pages: most pages staged or pinned at a time."""

    deadline_s: float
    pin_pages: int
    verify: bool


class Staging:
    """All staged requests of this engine, oldest first."""

    def __init__(
        self,
        cache: DualPathRadixCache,
        pool: HostPool,
        exports: ExportTable,
        meter: Meter,
        limits: Limits,
        progress_at: Callable[[], float],
        settle: Callable[[Followed], None],
        later: Callable[..., object],
    ) -> None:
        """`progress_at`: when the store reader last brought in a page, monotonic seconds.
        `settle` is told of requests whose staging has come to an end. `later` calls a function
        with arguments in another thread, one after the other."""
        self._cache = cache
        self._pool = pool
        self._exports = exports
        self._meter = meter
        self._limits = limits
        self._progress_at = progress_at
        self._settle = settle
        self._entries: OrderedDict[Handle, Staged] = OrderedDict()
        self._later = later
        self.before_ready: Callable[[list[int]], None] = lambda slots: None
        """Gets pages between their checksum and their announcement; for tests."""

    def add(self, followed: Followed, now: float) -> None:
        """Take up a plan with k > 0 whose request waits for pre-allocation."""
        assert followed.plan is not None
        assert followed.key is not None
        pages = min(followed.plan.k, self._limits.pin_pages)
        if pages < followed.plan.k:
            self._meter.fallback("pin_cap", followed.plan.k - pages)
            followed.report.fallback = "pin_cap"
        self._exports.open(followed.key, now)
        entry = Staged(followed, pages * self._pool.page_size, Step.WAITING, now)
        self._entries[followed.handle] = entry
        if pages == 0:
            self._finish(entry, now)

    def holds(self, handle: Handle) -> bool:
        """Must this request not be pre-allocated yet?"""
        entry = self._entries.get(handle)
        return entry is not None and entry.step in (Step.WAITING, Step.LOADING)

    def may_retry_restore(self, handle: Handle, now: float, limit_s: float) -> bool:
        """Its prefix is pinned, and the copy to the device has not been tried for long."""
        entry = self._entries.get(handle)
        if entry is None or entry.pin_receipt is None:
            return False
        entry.restore_since = entry.restore_since or now
        return now - entry.restore_since < limit_s

    def tick(
        self, waiting: dict[Handle, DecodeRequest], moving: dict[Handle, DecodeRequest], now: float
    ) -> None:
        """`waiting`, `moving`: decode requests by handle, before and after pre-allocation."""
        blocked = False
        for handle, entry in list(self._entries.items()):
            if handle in waiting:
                if entry.step is Step.WAITING and not blocked:
                    # Those behind wait too, so that a large one is not overtaken for ever.
                    blocked = not self._try_start(entry, now)
                elif entry.step is Step.LOADING:
                    self._watch(entry, now)
            elif handle not in moving:
                self._drop(entry, "aborted" if self.holds(handle) else "")
            elif entry.step is Step.STAGED and not adapter.restore_pending(moving[handle]):
                self._unpin(entry)
                entry.step, entry.since = Step.RESTORED, now

    def show_load(self, load: Load, now: float) -> None:
        """The operation of a staged request has its pages: tell P where they will be."""
        assert load.origin.key is not None
        self._exports.reserve(
            load.origin.key, load.origin.first_page, load.all_slots(), load.hashes, now
        )

    def show_landed(self, load: Load, pages: list[int], now: float) -> None:
        """Pages of a load are in. Called by the thread that reads the store."""
        assert load.origin.key is not None
        at = load.origin.first_page
        sums = self._sums(load.slots(pages))
        self._exports.ready(load.origin.key, [at + p for p in pages], sums, now)

    def clear(self, reason: str) -> None:
        for entry in list(self._entries.values()):
            self._drop(entry, reason)

    @property
    def pinned_pages(self) -> int:
        """Pages being staged or pinned."""
        size = self._pool.page_size
        counted = (Step.LOADING, Step.STAGED)
        return sum(e.end // size for e in self._entries.values() if e.step in counted)

    def __len__(self) -> int:
        return len(self._entries)

    # --- steps --------------------------------------------------------------------------------

    def _try_start(self, entry: Staged, now: float) -> bool:
        """False: it waits on, for room or for a copy that is under way."""
        if self._stalled(entry, now):
            self._meter.fallback("staging_deadline", entry.end // self._pool.page_size)
            entry.followed.report.fallback = "staging_deadline"
            self._finish(entry, now)
            return True
        pages = entry.end // self._pool.page_size
        if self.pinned_pages + pages > self._limits.pin_pages and self.pinned_pages > 0:
            return False
        if now < entry.next_try:
            return False
        entry.next_try = now + TRY_S
        found = adapter.match(self._cache, entry.followed.live, entry.end)
        if entry.end - found.covered < sglang_pool.fewest_tokens(self._cache):
            self._show_present(entry, now)
            self._finish(entry, now)
            return True
        if found.host_node is None:
            return False
        self._show_present(entry, now)
        if not adapter.start_prefetch(self._cache, entry.followed.live, found, entry.end):
            return False
        entry.step, entry.since = Step.LOADING, now
        return True

    def _show_present(self, entry: Staged, now: float) -> None:
        """Pages that lie in the host pool already."""
        if entry.shown:
            return
        entry.shown = True
        key = entry.followed.key
        assert key is not None
        step = max(1, SUM_BYTES // self._pool.bytes_per_page)
        for run in adapter.host_runs(self._cache, entry.followed.live, entry.end):
            self._exports.reserve(key, run.first, run.pages, run.hashes, now)
            for at in range(0, len(run.pages), step):
                slots = run.pages[at : at + step]
                self._later(self._show_sums, key, run.first + at, slots, now)

    @guarded("checksums of staged pages", lambda *_: None)
    def _show_sums(self, key: Key, first: int, slots: list[int], now: float) -> None:
        pages = range(first, first + len(slots))
        self._exports.ready(key, pages, self._sums(slots), now)

    def _sums(self, slots: list[int]) -> tuple[str, ...]:
        sums = page_sums(self._pool, slots) if self._limits.verify else ()
        self.before_ready(slots)
        return sums

    def _watch(self, entry: Staged, now: float) -> None:
        handle = entry.followed.handle
        if not self._cache.has_ongoing_prefetch(handle):
            self._finish(entry, now)
        elif self._stalled(entry, now) and self._cache.is_waiting_for_query(handle):
            # The store's existence query hangs; a load that has its pages has its own deadline.
            self._meter.fallback("staging_deadline", entry.end // self._pool.page_size)
            entry.followed.report.fallback = "staging_deadline"
            adapter.drop_prefetch(self._cache, handle)
            self._finish(entry, now)

    def _finish(self, entry: Staged, now: float) -> None:
        """Pin what is here of [0, k) and let the request go on."""
        followed = entry.followed
        self._cache.pop_prefetch_loaded_tokens(followed.handle)
        found = adapter.match(self._cache, followed.live, entry.end)
        node = found.host_node
        if node is not None and not adapter.is_root(self._cache, node):
            entry.pin_receipt = adapter.pin(self._cache, node)
            entry.pinned_node = node
        assert followed.key is not None
        assert followed.plan is not None
        short = found.covered < followed.plan.k * self._pool.page_size
        # Behind the pages whose checksums are still being made.
        self._later(self._exports.end, followed.key, "staging_short" if short else "")
        self._meter.took("staging", now - followed.since)
        self._settle(followed)
        entry.step, entry.since = Step.STAGED, now

    def _drop(self, entry: Staged, reason: str) -> None:
        followed = entry.followed
        if self.holds(followed.handle):
            adapter.drop_prefetch(self._cache, followed.handle)
        self._unpin(entry)
        assert followed.key is not None
        self._exports.forget(followed.key, reason)
        self._settle(followed)
        self._entries.pop(followed.handle, None)

    def _unpin(self, entry: Staged) -> None:
        if entry.pin_receipt is not None:
            adapter.unpin(self._cache, entry.pinned_node, entry.pin_receipt)
            entry.pin_receipt = None

    def _stalled(self, entry: Staged, now: float) -> bool:
        """No progress of this engine's store reads for too long, or past the plan's own end."""
        since = max(entry.since, self._progress_at())
        return now - since > self._limits.deadline_s or now > entry.followed.give_up_at
