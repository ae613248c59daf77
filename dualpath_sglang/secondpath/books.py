"""Compares the host pool's books of a live engine, and looks whether its threads are alive."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.ledger import Books, differences

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.engine import SecondPath

log = logging.getLogger("dualpath")

IDLE_S, ALWAYS_S = 1.0, 0.05
"""Seconds between two comparisons."""
QUARANTINE_FRACTION = 0.25


class BooksError(AssertionError):
    """The books differ and the engine was told to end then."""


class Bookkeeper:
    """`DUALPATH_ENGINE_CHECK`: off; idle: once a second while idle, logged; always: 20 times a
    second while idle, and a difference ends the engine."""

    def __init__(self, second_path: SecondPath) -> None:
        self._path = second_path
        self._next = 0.0
        self._said: set[str] = set()
        self._quarantine_limit = int(second_path.pool.pages * QUARANTINE_FRACTION)
        self.checks = 0

    def quarantine_is_full(self) -> bool:
        return len(self._path.holds.quarantined) > self._quarantine_limit

    def tick(self, now: float) -> list[str]:
        """Differences, each logged once; empty too when it is not time to look."""
        path = self._path
        path.meter.gauge("quarantined", len(path.holds.quarantined))
        path.meter.gauge("pinned", self._pinned())
        if path.staging is not None:
            path.meter.gauge("exchanges", path.exports.active)
        if path.config.check == "off" or now < self._next:
            return []
        if path.busy() or not adapter.is_idle(path.scheduler):
            return []
        if not sglang_pool.is_diverted(path.cache):
            log.warning("DualPath: the store was attached anew; prefetches are taken over again")
            sglang_pool.divert_prefetches(path.cache, path.take, path.holds)
        self._next = now + (ALWAYS_S if path.config.check == "always" else IDLE_S)
        return self.check_idle()

    def check_idle(self) -> list[str]:
        self.checks += 1
        found = differences(self.books()) + self.dead_threads()
        for text in found:
            if text not in self._said:
                self._said.add(text)
                self._path.meter.fallback("books_differ")
                log.critical("DualPath: %s", text)
        return found

    def books(self) -> Books:
        path, cache = self._path, self._path.cache
        return Books(
            total=path.pool.pages,
            free=sglang_pool.free_set(cache),
            tree=sglang_pool.tree_pages(cache),
            owned=path.loads.owned() | sglang_pool.prefetch_pages(cache),
            leaving=sglang_pool.release_queue_pages(cache),
            quarantined=path.holds.quarantined,
            reserved=path.probes.reserved,
            pinned=self._pinned(),
        )

    def _pinned(self) -> int:
        staging = self._path.staging
        return self._path.pins.pages + (staging.pinned_pages if staging is not None else 0)

    def dead_threads(self) -> list[str]:
        """Those that this engine cannot do without, a sentence each."""
        path = self._path
        dead = sglang_pool.dead_storage_threads(path.cache)
        parts = {"store reader": path.reader, "pulling": path.client, "export server": path.server}
        dead += [name for name, part in parts.items() if part is not None and not part.alive]
        return [f"thread {name} has died" for name in dead]
