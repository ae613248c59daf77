"""CPU attention: ours against SGLang's torch_native, both arms in one run.

    python -m benchmarks.attention [--json FILE] [--threads N] [--repeat N]

Prints one row per shape and ends with status 1 if 256 new tokens on an 8k cached prefix are not
at least 10 times faster than upstream. Times are the best of `--repeat` runs of one layer's
attention over a paged cache (page size 16, pages scattered), float32.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dualpath_sglang.cpu.shims import install_shims

PAGE = 16
Q_HEADS, KV_HEADS, DIM = 4, 2, 64
TARGET = (8192, 256)
TARGET_RATIO = 10.0
# (cached prefix, new tokens); decode is new = 1
SHAPES = [
    (0, 256),
    (0, 1024),
    (1024, 16),
    (1024, 256),
    (2048, 256),
    (4096, 256),
    TARGET,
    (16384, 256),
    (8192, 16),
    (8192, 1),
]


@dataclass(frozen=True)
class Row:
    prefix: int
    new: int
    ours_ms: float
    upstream_ms: float
    ratio: float
    largest_difference: float


@dataclass(frozen=True)
class Paged:
    """One sequence in a paged cache."""

    query: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    req_to_token: torch.Tensor
    prefix: int

    @classmethod
    def random(cls, prefix: int, new: int) -> Paged:
        rng = torch.Generator().manual_seed(prefix + new)
        total = prefix + new
        pages = -(-total // PAGE)
        starts = torch.randperm(pages, generator=rng) * PAGE
        slots = (starts[:, None] + torch.arange(PAGE)).flatten()[:total]
        return cls(
            query=torch.randn((new, Q_HEADS, DIM), generator=rng),
            k_cache=torch.randn((pages * PAGE, KV_HEADS, DIM), generator=rng),
            v_cache=torch.randn((pages * PAGE, KV_HEADS, DIM), generator=rng),
            req_to_token=slots[None].to(torch.int32),
            prefix=prefix,
        )

    def run(self, backend: Any) -> torch.Tensor:
        new = len(self.query)
        output = torch.empty_like(self.query)
        backend._run_sdpa_forward_extend(
            self.query,
            output,
            self.k_cache,
            self.v_cache,
            self.req_to_token,
            torch.tensor([0]),
            torch.tensor([self.prefix + new]),
            torch.tensor([self.prefix]),
            torch.tensor([new]),
            scaling=DIM**-0.5,
            enable_gqa=True,
            causal=True,
        )
        return output

    def decode(self, backend: Any) -> torch.Tensor:
        output = torch.empty_like(self.query)
        backend._run_sdpa_forward_decode(
            self.query,
            output,
            self.k_cache,
            self.v_cache,
            self.req_to_token,
            torch.tensor([0]),
            torch.tensor([self.prefix + 1]),
            scaling=DIM**-0.5,
            enable_gqa=True,
            causal=False,
        )
        return output


def backends() -> tuple[Any, Any]:
    """(upstream, ours), made without the model runner that only their constructor needs."""
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        from dualpath_sglang.cpu.attention_backend import PrefixAttnBackend
    return object.__new__(TorchNativeAttnBackend), object.__new__(PrefixAttnBackend)


def best_ms(call: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def measure(prefix: int, new: int, repeat: int, arms: tuple[Any, Any]) -> Row:
    case = Paged.random(prefix, new)
    run = case.decode if new == 1 else case.run
    upstream, ours = (run(arm) for arm in arms)  # also the warm-up
    upstream_ms, ours_ms = (best_ms(functools.partial(run, arm), repeat) for arm in arms)
    return Row(
        prefix=prefix,
        new=new,
        ours_ms=ours_ms,
        upstream_ms=upstream_ms,
        ratio=upstream_ms / ours_ms,
        largest_difference=(upstream - ours).abs().max().item(),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--repeat", type=int, default=5, help="runs per arm, best counts (5)")
    args = parser.parse_args(argv)
    if args.repeat < 1 or args.threads < 1:
        parser.error("--repeat and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    arms = backends()
    rows = []
    print(
        f"{'prefix':>7} {'new':>5} {'upstream ms':>12} {'ours ms':>9} {'ratio':>7} {'max diff':>9}"
    )
    for prefix, new in SHAPES:
        row = measure(prefix, new, args.repeat, arms)
        rows.append(row)
        print(
            f"{prefix:>7} {new:>5} {row.upstream_ms:>12.2f} {row.ours_ms:>9.2f} "
            f"{row.ratio:>6.1f}x {row.largest_difference:>9.1e}",
            flush=True,
        )
    reached = next(row.ratio for row in rows if (row.prefix, row.new) == TARGET)
    if args.json:
        report = {
            "rows": [asdict(row) for row in rows],
            "target_ratio": TARGET_RATIO,
            "reached_ratio": reached,
            "heads": {"query": Q_HEADS, "kv": KV_HEADS, "dim": DIM},
            "page_size": PAGE,
            "threads": args.threads,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        f"{TARGET[1]} new tokens on a prefix of {TARGET[0]}: {reached:.1f}x "
        f"(target {TARGET_RATIO:.0f}x)"
    )
    return 0 if reached >= TARGET_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
