"""The thread that reads pages out of one peer's memory into this engine's host pool."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.checksum import page_sums
from dualpath_sglang.secondpath.load import Load
from dualpath_sglang.secondpath.meter import Meter
from dualpath_sglang.secondpath.pool import HostPool, entries
from dualpath_sglang.secondpath.protocol import Hello
from dualpath_sglang.secondpath.spans import coalesce
from dualpath_sglang.secondpath.transport import Transport

log = logging.getLogger("dualpath")


@dataclass(frozen=True)
class Job:
    """Read `pages` of `load` from `slots` of the peer before `until`, then compare `sums`, empty
    for a page without. `end`: not empty: nothing more comes from the peer, and why."""

    hello: Hello
    load: Load
    pages: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    until: float = 0.0
    end: str = ""


@dataclass(frozen=True)
class Tools:
    """What all pullers of an engine share. on_lost: gets slots that late bytes may still reach."""

    transport: Transport
    pool: HostPool
    bucket: TokenBucket
    clock: Clock
    meter: Meter
    on_lost: Callable[[list[int]], None]


class Puller:
    """Jobs are done in order. A sync read spins a core while it lasts, so there is one thread."""

    def __init__(self, address: str, tools: Tools) -> None:
        self._tools = tools
        self._hello = Hello("")
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name=f"dualpath-pull-{address}", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def meet(self, hello: Hello) -> None:
        """The peer as it is since its start. Called before any job that names it."""
        if self._hello.nonce not in ("", hello.nonce) and self._hello.session == hello.session:
            # It restarted on the same port; the engine has kept its old memory's description.
            self._tools.transport.renew()
        self._hello = hello

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            size = self._tools.pool.bytes_per_page
            step = self._tools.bucket.quantum(size, max(1, len(job.pages)))
            for at in range(0, len(job.pages), step):
                self._take(job, job.pages[at : at + step])
            if job.end:
                job.load.leave_peer(job.end)

    def _take(self, job: Job, asked: list[int]) -> None:
        pages = job.load.take_peer(asked)
        try:
            if pages:
                self._pull(job, pages)
        except Exception:
            log.exception("DualPath: pulling pages failed")
            self._tools.on_lost(job.load.lost(pages, "pull_error", by_peer=True))

    def _pull(self, job: Job, pages: list[int]) -> None:
        tools, load = self._tools, job.load
        if not self._arrived(job, pages):
            tools.on_lost(load.lost(pages, "peer_read", by_peer=True))
            return
        wrong = self._wrong(load, pages, dict(zip(job.pages, job.sums, strict=True)))
        good = [p for p in pages if p not in wrong]
        if wrong:
            load.refused(sorted(wrong), "peer_checksum")
            tools.meter.fallback("peer_checksum", len(wrong))
        if good:
            size = tools.pool
            tools.meter.moved(
                "decode_to_prefill", len(good) * size.page_size, len(good) * size.bytes_per_page
            )
            load.landed(good, by_peer=True, now=tools.clock.now())

    def _arrived(self, job: Job, pages: list[int]) -> bool:
        """Read the pages; False: not whole, not in time, or from a peer that has restarted."""
        tools, hello, here = self._tools, job.hello, self._tools.pool
        there = HostPool(hello.base, hello.page_bytes, hello.v_offset, hello.pages, here.page_size)
        remote = dict(zip(job.pages, job.slots, strict=True))
        spans = coalesce(job.load.slots(pages), [remote[p] for p in pages])
        reads = entries(spans, here, there)
        delay = tools.bucket.delay(sum(reads.lengths))
        if delay > 0:
            time.sleep(delay)
        if tools.clock.now() >= job.until or hello.nonce != self._hello.nonce:
            return False
        arrived = tools.transport.read(hello.session, reads.local, reads.remote, reads.lengths)
        # After its lease the peer may have given the pages to another prompt.
        return arrived and tools.clock.now() < job.until

    def _wrong(self, load: Load, pages: list[int], sums: dict[int, str]) -> set[int]:
        """Pages whose bytes are not those that the peer had when it announced them."""
        checked = [p for p in pages if sums[p]]
        found = page_sums(self._tools.pool, load.slots(checked))
        return {p for p, text in zip(checked, found, strict=True) if sums[p] != text}
