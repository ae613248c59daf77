"""A digest of weights that reads every byte, once for each state of a file."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dualpath_sglang.contract.errors import WeightsUnreadable
from dualpath_sglang.weights.files import Look, WeightFile, look_at
from dualpath_sglang.weights.remembered import Remembered

log = logging.getLogger("dualpath")

SEGMENT = 256 << 20
"""Bytes that one thread hashes at a time."""
BUFFER = 4 << 20
PROGRESS_S = 10.0


def full_digest(files: Sequence[WeightFile], memory: Remembered) -> str:
    """32 hexadecimal digits. Raises WeightsUnreadable. Of two processes that want the same, one
    reads and the other waits for it."""
    whole = hashlib.sha256()
    with memory.locked():
        known = memory.load()
        looks = [look_at(file.path) for file in files]
        unknown = sum(seen.size for seen in looks if seen not in known)
        progress = _Progress(unknown)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1), "dualpath-weights") as pool:
            for file, seen in zip(files, looks, strict=True):
                if seen not in known:
                    known[seen] = _hash(file, seen, pool, progress)
                whole.update(f"{file.name}\0{known[seen]}\n".encode())
        if unknown:
            memory.save({seen: known[seen] for seen in looks})
    return whole.hexdigest()[:32]


def _hash(file: WeightFile, seen: Look, pool: ThreadPoolExecutor, progress: _Progress) -> str:
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        starts = range(0, seen.size, SEGMENT)
        parts = list(pool.map(lambda at: _segment(fd, at, seen.size, progress), starts))
    finally:
        os.close(fd)
    if look_at(file.path) != seen:
        raise WeightsUnreadable(f"{str(file.path)!r} was written to while it was read")
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _segment(fd: int, start: int, size: int, progress: _Progress) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    at, end = start, min(start + SEGMENT, size)
    while at < end:
        got = os.preadv(fd, [buffer[: min(BUFFER, end - at)]], at)
        if got == 0:
            break  # it became shorter, which its look will show
        digest.update(buffer[:got])
        at += got
        progress.add(got)
    return digest.digest()


class _Progress:
    """One line every ten seconds. Two threads at once cost a line too many at most."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._done = 0
        self._clock = clock
        self._next = clock() + PROGRESS_S

    def add(self, count: int) -> None:
        self._done += count
        if self._clock() >= self._next:
            self._next = self._clock() + PROGRESS_S
            gb = 1e9
            log.info("DualPath: %.1f of %.1f GB of weights read", self._done / gb, self._total / gb)
