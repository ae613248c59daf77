"""Checksums of pages in the host pool, to compare what was pulled with what was there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import xxhash

from dualpath_sglang.secondpath.pool import HostPool


def page_sums(pool: HostPool, pages: Iterable[int]) -> tuple[str, ...]:
    """xxh3_64 over K then V of each page, as 16 hex digits."""
    return tuple(_sum(pool, page) for page in pages)


def _sum(pool: HostPool, page: int) -> str:
    digest = xxhash.xxh3_64()
    for address in pool.addresses(page):
        digest.update((ctypes.c_char * pool.page_bytes).from_address(address))
    return digest.hexdigest()
