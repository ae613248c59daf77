"""How long it takes to name weights: `python -m benchmarks.weights_digest --out DIR`.

Sparse folders of 100 GB in the shapes of two real models, sampled; then a file of real bytes, read
whole and known again. Sparse files cost no disk, so what is measured is this machine's system calls
and hashing; a cold disk adds its latency once for each place, over eight threads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dualpath_sglang.weights.files import weight_files
from dualpath_sglang.weights.full import full_digest
from dualpath_sglang.weights.remembered import Remembered
from dualpath_sglang.weights.sampled import sampled_digest

ROUNDS = 5
SHAPES = {"dense, 723 tensors in 30 files": (723, 30), "experts, 91,000 in 163": (91_000, 163)}
"""As Llama 3.1 70B and DeepSeek-V3 are published."""


def sparse_model(folder: Path, tensors: int, files: int, size: int) -> None:
    """A folder of `size` bytes of safetensors, all holes."""
    folder.mkdir(parents=True)
    each = size // tensors // 2 * 2
    for index in range(files):
        names = [f"model.layers.{i}.weight" for i in range(index, tensors, files)]
        header = json.dumps(dict(_entries(names, each))).encode()
        with (folder / f"model-{index:05d}-of-{files:05d}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + each * len(names))


def _entries(names: list[str], each: int) -> Iterator[tuple[str, Any]]:
    for at, name in enumerate(names):
        offsets = [at * each, (at + 1) * each]
        yield name, {"dtype": "BF16", "shape": [each // 2], "data_offsets": offsets}


def sampled(folder: Path) -> str:
    return sampled_digest(weight_files(str(folder), "auto"))


def timed(call: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to work in; emptied")
    parser.add_argument("--gb", type=float, default=100.0, help="of the sparse folders (100)")
    parser.add_argument("--full-gb", type=float, default=2.0, help="of real bytes (2)")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    result: dict[str, Any] = {"cpus": os.cpu_count(), "gb": args.gb}
    for name, (tensors, count) in SHAPES.items():
        folder = args.out / str(tensors)
        sparse_model(folder, tensors, count, int(args.gb * 1e9))
        seconds = timed(partial(sampled, folder))
        result[name] = {"first_s": seconds[0], "median_s": statistics.median(seconds)}
    result["full"] = _full(args.out, int(args.full_gb * 1e9))
    (args.out / "weights_digest.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


def _full(out: Path, size: int) -> dict[str, float]:
    folder = out / "real"
    folder.mkdir(parents=True)
    block = os.urandom(64 << 20)
    with (folder / "pytorch_model.bin").open("wb") as file:
        for at in range(0, size, len(block)):
            file.write(block[: size - at])
    time.sleep(4)  # a file that has just changed is not remembered
    files = weight_files(str(folder), "auto")
    memory = Remembered(out / "cache")
    (first,) = timed(lambda: full_digest(files, memory), 1)
    again = timed(lambda: full_digest(files, memory))
    shutil.rmtree(folder)
    return {"gb": size / 1e9, "gb_per_s": size / 1e9 / first, "again_s": statistics.median(again)}


if __name__ == "__main__":
    raise SystemExit(main())
