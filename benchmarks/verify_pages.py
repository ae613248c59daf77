"""What `verify_pages` costs: pulling pages over Mooncake's TCP with and without their checksums.

    python -m benchmarks.verify_pages [--json FILE] [--repeat N]

Two transfer engines on this machine, as a decode and a prefill engine have them; scattered pages
of K and V are read by the real transport. Both arms run in turn, medians are shown:

decode us, prefill us: CPU time of one page's checksum on either side (the same function).
pull ratio: time to pull with the check over without, on the prefill engine's pulling thread.
rate: bytes of one thread's checksums over bits of a NIC. Where a NIC is faster than this, the
    check bounds the pull and `verify_pages` should be off.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.replay.environment import machine, versions
from dualpath_sglang.secondpath.checksum import page_sums
from dualpath_sglang.secondpath.pool import HostPool, entries
from dualpath_sglang.secondpath.spans import coalesce
from dualpath_sglang.secondpath.transport import MooncakeTransport

PAGE_KIB = (32, 64, 256, 1024, 4096)
"""K and V of a page together, as it lies in the host pool."""
POOL_BYTES = 256 << 20
PULL_BYTES = 32 << 20
READ_S = 60.0


@dataclass(frozen=True)
class Row:
    """us: microseconds for one page; rate_gbit_s: of one thread's checksums."""

    page_kib: int
    decode_us: float
    prefill_us: float
    pull_us: float
    pull_verified_us: float
    pull_ratio: float
    rate_gbit_s: float


class Side:
    """A host pool, each MiB of one value, and the transfer engine it is registered with."""

    def __init__(self, seed: int) -> None:
        self._memory = (ctypes.c_char * POOL_BYTES)()
        self.base = ctypes.addressof(self._memory)
        for at in range(0, POOL_BYTES, 1 << 20):
            ctypes.memset(self.base + at, (at // (1 << 20) + seed) % 256, 1 << 20)
        self.transport = MooncakeTransport("127.0.0.1", "tcp", "", self.base, POOL_BYTES)

    def pool(self, page_kib: int) -> HostPool:
        """This memory as pages of K and of V."""
        one = page_kib * 512
        pages = POOL_BYTES // 2 // one
        return HostPool(self.base, one, POOL_BYTES // 2, pages, 16)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(page_kib: int, here: Side, there: Side, repeat: int) -> Row:
    local, remote = here.pool(page_kib), there.pool(page_kib)
    count = min(PULL_BYTES // (page_kib * 1024), local.pages // 2)
    # Every other page: nothing coalesces, as after a while of serving.
    slots = list(range(0, 2 * count, 2))
    reads = entries(coalesce(slots, slots[::-1]), local, remote)
    sums = page_sums(remote, slots[::-1])

    def pull() -> None:
        reading = here.transport.read(there.transport.session, reads, READ_S)
        if not reading.whole:
            raise SystemExit("a read between two transfer engines of this machine failed")

    def check() -> None:
        if page_sums(local, slots) != sums:
            raise SystemExit("pages arrived with other bytes")

    def pull_and_check() -> None:
        pull()
        check()

    pull()
    times: dict[str, list[float]] = {"pull": [], "verified": [], "decode": [], "prefill": []}
    for _ in range(repeat):
        times["pull"].append(seconds(pull))
        times["verified"].append(seconds(pull_and_check))
        times["decode"].append(seconds(lambda: page_sums(remote, slots)))
        times["prefill"].append(seconds(check))
    us = {name: statistics.median(values) / count * 1e6 for name, values in times.items()}
    return Row(
        page_kib,
        us["decode"],
        us["prefill"],
        us["pull"],
        us["verified"],
        us["verified"] / us["pull"],
        page_kib * 1024 * 8 / us["prefill"] / 1e3,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify_pages", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--repeat", type=int, default=9, help="runs per arm, the median counts (9)")
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error("--repeat must be at least 1")
    os.environ.setdefault("MC_FORCE_TCP", "1")  # a machine may have RDMA
    here, there = Side(1), Side(2)
    rows = []
    print(f"{'page KiB':>9} {'decode us':>10} {'prefill us':>11} {'pull ratio':>11} {'rate':>12}")
    for page_kib in PAGE_KIB:
        row = measure(page_kib, here, there, args.repeat)
        rows.append(row)
        print(
            f"{row.page_kib:>9} {row.decode_us:>10.1f} {row.prefill_us:>11.1f} "
            f"{row.pull_ratio:>10.3f}x {row.rate_gbit_s:>6.0f} Gbit/s",
            flush=True,
        )
    if args.json:
        report = {
            "rows": [asdict(row) for row in rows],
            "machine": machine(),
            "versions": versions(),
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
