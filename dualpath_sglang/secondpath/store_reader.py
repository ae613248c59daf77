"""The threads that read pages from the store, for all loads of this engine, first come first
served, in batches small enough that what has arrived is used while the rest is on its way.

There are two of them: while one is woken up and asks for its next batch, the other's batch keeps
the storage NIC busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum

from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.load import Load

log = logging.getLogger("dualpath")

BATCH_S = 0.05
"""Wanted duration of one batch: its end is when its pages can be pulled or used."""
MIN_BATCH, MAX_BATCH = 8, 128
READERS = 2
POLL_S = 0.05


class PageRead(Enum):
    OK = "ok"
    ABSENT = "absent"
    """Not there, or there and short: no byte moves any more."""
    BROKEN = "broken"
    """The transfer failed and may still write."""


ReadPages = Callable[[Sequence[str], Sequence[int]], Sequence[PageRead]]
"""Page hashes, page numbers in the host pool -> what became of each. May raise."""


class StoreReader:
    """Runs from construction to `stop`. An exception of the store fails one batch, no more."""

    def __init__(
        self,
        read: ReadPages,
        bytes_per_page: int,
        bucket: TokenBucket,
        clock: Clock,
        on_lost: Callable[[list[int]], None],
        readers: int = READERS,
    ) -> None:
        """`on_lost` gets slots that stay held although their load has given them up."""
        self._read = read
        self._bytes_per_page = bytes_per_page
        self._bucket = bucket
        self._clock = clock
        self._on_lost = on_lost
        self._loads: list[Load] = []
        self._work = threading.Condition()
        self._stopped = False
        self._batch = MIN_BATCH
        self.progress_at = clock.now()
        self._threads = [
            threading.Thread(target=self._run, name=f"dualpath-store-{i}", daemon=True)
            for i in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, load: Load) -> None:
        with self._work:
            self._loads.append(load)
            self._work.notify_all()

    def wake(self) -> None:
        """A load has more pages to read from the store than before."""
        with self._work:
            self._work.notify_all()

    def stop(self) -> None:
        with self._work:
            self._stopped = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(5)

    def _run(self) -> None:
        while True:
            with self._work:
                if self._stopped:
                    return
                load, pages = self._next()
                if load is None:
                    self._work.wait(POLL_S if self._loads else None)
                    continue
                delay = self._bucket.delay(len(pages) * self._bytes_per_page)
            try:
                self._step(load, pages, delay)
            except Exception:
                # Its pages stay as they are and the load ends by its deadline; the thread lives on.
                log.exception("DualPath: a batch of %d pages could not be settled", len(pages))

    def _next(self) -> tuple[Load | None, list[int]]:
        self._loads = [load for load in self._loads if not load.settled]
        most = self._bucket.quantum(self._bytes_per_page, self._batch)
        for load in self._loads:
            if pages := load.take_store(most):
                return load, pages
        return None, []

    def _step(self, load: Load, pages: list[int], delay: float) -> None:
        if delay > 0:
            time.sleep(delay)
        began = self._clock.now()
        slots = load.slots(pages)
        try:
            results = list(self._read([load.hashes[p] for p in pages], slots))
        except Exception:
            log.exception("DualPath: reading %d pages from the store failed", len(pages))
            results = [PageRead.BROKEN] * len(pages)
        if PageRead.BROKEN in results:
            # What fails costs host pages for a while: little at a time from now on.
            self._batch = MIN_BATCH
        else:
            self._adapt(len(pages), self._clock.now() - began + delay)
        self._settle(load, pages, results)

    def _settle(self, load: Load, pages: list[int], results: list[PageRead]) -> None:
        now = self._clock.now()
        good = [p for p, r in zip(pages, results, strict=True) if r is PageRead.OK]
        absent = [p for p, r in zip(pages, results, strict=True) if r is PageRead.ABSENT]
        broken = [p for p, r in zip(pages, results, strict=True) if r is PageRead.BROKEN]
        if good:
            self.progress_at = now
        if broken:
            self._on_lost(load.lost(broken, "store_broken", by_peer=False))
            load.give_up(min(broken))
        if absent:
            load.missing(absent, "store_missing")
        if good:
            load.landed(good, by_peer=False, now=now)

    def _adapt(self, pages: int, seconds: float) -> None:
        """`pages` took `seconds` beside what the other readers brought in."""
        rate = pages / max(seconds, 1e-6)
        wanted = min(max(int(rate * BATCH_S), MIN_BATCH), MAX_BATCH)
        self._batch = (self._batch + wanted + 1) // 2
