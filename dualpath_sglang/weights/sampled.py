"""A digest of weights that reads a small part of them: headers, sizes and a sample of every tensor.

It sees every training step: a step changes at least one of ten thousand weights in any format (in
bfloat16, at the small rates of reinforcement learning, about one of a hundred), and the sample has
millions. It does not see a change of a few chosen bytes; `full` does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from dualpath_sglang.contract.errors import WeightsUnreadable
from dualpath_sglang.weights.files import WeightFile
from dualpath_sglang.weights.regions import Outline, Region, outline

BLOCK = 1024
"""Bytes read at one place."""
BLOCKS = 16_384
"""Places in all, spread over the tensors: 16 MiB, some 8 million weights of two bytes."""
LEAST = 1
"""Places in each tensor; one that is not larger than its places is read whole."""
THREADS = 8
BATCH = 256
"""Places that one task reads."""


@dataclass(frozen=True)
class _Task:
    fd: int
    name: str
    places: Sequence[Region]


def sampled_digest(files: Sequence[WeightFile]) -> str:
    """32 hexadecimal digits. Raises WeightsUnreadable."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(THREADS, "dualpath-weights") as pool, ExitStack() as opened:
        outlines = list(pool.map(lambda file: outline(file.path), files))
        each = max(LEAST, BLOCKS // max(1, sum(len(o.regions) for o in outlines)))
        tasks: list[_Task] = []
        for file, found in zip(files, outlines, strict=True):
            fd = _open(file)
            opened.callback(os.close, fd)
            tasks += _tasks(fd, file, found, each)
            about = hashlib.sha256(found.about).hexdigest()
            whole.update(f"{file.name}\0{found.size}\0{about}\n".encode())
        for digest in pool.map(_read, tasks):
            whole.update(digest)
    return whole.hexdigest()[:32]


def places(region: Region, count: int) -> Iterator[Region]:
    """Where a tensor is read: one block in each of `count` equal parts, at an uneven distance, so
    that the blocks do not stand in one column of a matrix."""
    length = region.end - region.begin
    if length <= count * BLOCK:
        yield region
        return
    for i in range(count):
        start = region.begin + length * i // count
        room = length // count - BLOCK
        at = start + (i * 2_654_435_761 + region.begin * 40_503) % (room + 1)
        yield Region(at, at + BLOCK)


def _open(file: WeightFile) -> int:
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsUnreadable(f"{str(file.path)!r} cannot be read: {error}") from error
    # Reading ahead would bring in a hundred times of what is asked for.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


def _tasks(fd: int, file: WeightFile, found: Outline, each: int) -> Iterator[_Task]:
    wanted = [place for region in found.regions for place in places(region, each)]
    for first in range(0, len(wanted), BATCH):
        yield _Task(fd, str(file.path), wanted[first : first + BATCH])


def _read(task: _Task) -> bytes:
    digest = hashlib.sha256()
    for place in task.places:
        length = place.end - place.begin
        try:
            data = os.pread(task.fd, length, place.begin)
        except OSError as error:
            raise WeightsUnreadable(f"{task.name!r} cannot be read: {error}") from error
        if len(data) != length:
            raise WeightsUnreadable(f"{task.name!r} became shorter while it was read")
        digest.update(data)
    return digest.digest()
