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
from dualpath_sglang.secondpath.transport import Reading, Transport

log = logging.getLogger("dualpath")

READ_BYTES = 32 << 20


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
    """What all pullers of an engine share. on_lost: gets slots that late bytes may still reach, and
    what says whether they still can (none: nobody knows). limit_s: of one read."""

    transport: Transport
    pool: HostPool
    bucket: TokenBucket
    clock: Clock
    meter: Meter
    on_lost: Callable[[list[int], Callable[[], bool] | None], None]
    limit_s: float


class Puller:
    """Jobs are done in order, each in reads of at most READ_BYTES: what has arrived is used while
    the rest is on its way, and a slow network lets each read end within its limit."""

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
            step = self._tools.bucket.quantum(size, max(1, READ_BYTES // size))
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
            self._tools.on_lost(job.load.lost(pages, "pull_error", by_peer=True), None)

    def _pull(self, job: Job, pages: list[int]) -> None:
        tools, load = self._tools, job.load
        reading = self._read(job, pages)
        # After its lease the peer may have given the pages to another prompt.
        if not reading.whole or tools.clock.now() >= job.until:
            self._failed(load, pages, reading)
            return
        wrong = self._wrong(load, pages, dict(zip(job.pages, job.sums, strict=True)))
        good = [p for p in pages if p not in wrong]
        if wrong:
            load.refused(sorted(wrong), "peer_checksum", tools.clock.now())
            tools.meter.fallback("peer_checksum", len(wrong))
        if good:
            pool = tools.pool
            tools.meter.moved(
                "decode_to_prefill", len(good) * pool.page_size, len(good) * pool.bytes_per_page
            )
            load.landed(good, by_peer=True, now=tools.clock.now())

    def _failed(self, load: Load, pages: list[int], reading: Reading) -> None:
        """The store has them, and the load waits for nothing more from this peer."""
        self._tools.meter.fallback("peer_read", len(pages))
        if reading.is_over():
            load.refused(pages, "peer_read", self._tools.clock.now())
        else:
            slots = load.lost(pages, "peer_read", by_peer=True)
            self._tools.on_lost(slots, reading.is_over)
        load.leave_peer("peer_read")

    def _read(self, job: Job, pages: list[int]) -> Reading:
        """Not begun where the lease is over or the peer has restarted."""
        tools, hello, here = self._tools, job.hello, self._tools.pool
        there = HostPool(hello.base, hello.page_bytes, hello.v_offset, hello.pages, here.page_size)
        remote = dict(zip(job.pages, job.slots, strict=True))
        spans = coalesce(job.load.slots(pages), [remote[p] for p in pages])
        reads = entries(spans, here, there)
        delay = tools.bucket.delay(sum(reads.lengths))
        if delay > 0:
            time.sleep(delay)
        if tools.clock.now() >= job.until or hello.nonce != self._hello.nonce:
            return Reading(False)
        return tools.transport.read(hello.session, reads, tools.limit_s)

    def _wrong(self, load: Load, pages: list[int], sums: dict[int, str]) -> set[int]:
        """Pages whose bytes are not those that the peer had when it announced them."""
        checked = [p for p in pages if sums[p]]
        found = page_sums(self._tools.pool, load.slots(checked))
        return {p for p, text in zip(checked, found, strict=True) if sums[p] != text}
