"""The way from this engine to the store: reads pages, counts them, and lets tests break them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

from dualpath_sglang.metrics import Path
from dualpath_sglang.secondpath import sglang_pool
from dualpath_sglang.secondpath.faults import Faults
from dualpath_sglang.secondpath.meter import Meter
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.store_reader import PageRead
from dualpath_sglang.sglang_types import UnifiedRadixCache

STALL_S = 60.0


class StoreTap:
    """Called by the thread that reads the store."""

    def __init__(
        self, cache: UnifiedRadixCache, role: str, pool: HostPool, meter: Meter, faults: Faults
    ) -> None:
        self._cache = cache
        self._path: Path = "store_to_prefill" if role == "prefill" else "store_to_decode"
        self._pool = pool
        self._meter = meter
        self._faults = faults

    def read(self, hashes: Sequence[str], pages: Sequence[int]) -> list[PageRead]:
        """As `store_reader.ReadPages`."""
        if self._faults.fires("store_error"):
            raise OSError("fault: store_error")
        if self._faults.fires("store_stall"):
            time.sleep(STALL_S)
        results = sglang_pool.read_store(self._cache, hashes, pages)
        for name in ("store_missing", "store_short"):
            if self._faults.fires(name):
                results[-1] = PageRead.ABSENT
        good = sum(1 for result in results if result is PageRead.OK)
        if good:
            pool = self._pool
            self._meter.moved(self._path, good * pool.page_size, good * pool.bytes_per_page)
        return results


def spoil(pool: HostPool, pages: Sequence[int]) -> None:
    """Change the K of pages in the host pool, as a memory error would: the signs of 16-bit and of
    32-bit numbers."""
    for page in pages:
        view = (ctypes.c_uint8 * pool.page_bytes).from_address(pool.addresses(page)[0])
        for i in range(1, pool.page_bytes, 2):
            view[i] ^= 0x80
