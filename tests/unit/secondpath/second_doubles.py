"""Stand-ins for what needs an engine: memory that can be read by address, a copying transport."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Sequence

from dualpath_sglang.metrics import Path
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Key, Load, Origin
from dualpath_sglang.secondpath.pool import Entries, HostPool
from dualpath_sglang.secondpath.transport import Reading

PAGE_BYTES = 64
KEY: Key = (7, "plan")


class Memory:
    """A host pool in ordinary memory, K and V apart."""

    def __init__(self, pages: int) -> None:
        self.buffer = ctypes.create_string_buffer(2 * pages * PAGE_BYTES)
        base = ctypes.addressof(self.buffer)
        self.pool = HostPool(base, PAGE_BYTES, pages * PAGE_BYTES, pages, 16)

    def page(self, number: int) -> bytes:
        return b"".join(ctypes.string_at(at, PAGE_BYTES) for at in self.pool.addresses(number))

    def fill(self, number: int, value: int) -> None:
        for i, at in enumerate(self.pool.addresses(number)):
            ctypes.memset(at, value + i, PAGE_BYTES)


class CountingMeter:
    """A meter double: plain numbers."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()

    def moved(self, path: Path, tokens: int, amount: int) -> None:
        self.tokens[path] += tokens
        self.bytes[path] += amount

    def fallback(self, reason: str, pages: int = 1) -> None:
        if pages > 0:
            self.fallbacks[reason] += pages

    def plan(self, outcome: str) -> None:
        pass

    def took(self, what: str, seconds: float) -> None:
        pass

    def gauge(self, name: str, value: int) -> None:
        pass


class CopyingTransport:
    """A transport double: copies memory of this process."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.fails = False
        self.over = True
        """Can no byte of a failed read arrive any more?"""
        self.renewed = 0

    @property
    def session(self) -> str:
        return "copying:1"

    def read(self, session: str, reads: Entries, limit_s: float) -> Reading:
        self.calls.append((session, list(reads.lengths)))
        if self.fails:
            return Reading(False, lambda: self.over)
        for here, there, length in zip(reads.local, reads.remote, reads.lengths, strict=True):
            ctypes.memmove(here, there, length)
        return Reading(True)

    def renew(self) -> None:
        self.renewed += 1


class Operation:
    """Stands for SGLang's prefetch operation."""

    def __init__(self, handle: object = "handle") -> None:
        self.handle = handle


def hashes(count: int, first: int = 0) -> list[str]:
    return [f"{first + i:064x}"[::-1] for i in range(count)]


def make_load(
    pages: int, peer_pages: int = 0, holds: PageHolds | None = None, slots: Sequence[int] = ()
) -> Load:
    return Load(
        Operation(),
        Origin(0, KEY),
        hashes(pages),
        slots or list(range(100, 100 + pages)),
        peer_pages,
        holds or PageHolds(),
        0.0,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Other threads make `condition` true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)
