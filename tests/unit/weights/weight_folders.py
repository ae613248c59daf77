"""Folders of weights for tests, written without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def write_safetensors(file: Path, arrays: Arrays) -> None:
    """`arrays`: of 16-bit words, taken for bfloat16."""
    header, at = {}, 0
    for name, array in arrays.items():
        end = at + array.nbytes
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            out.write(array.tobytes())


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, as 16-bit words."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def two_layers(seed: int = 0, rows: int = 3000) -> dict[str, np.ndarray]:
    """Two matrices far larger than what is sampled of them, and a vector."""
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (rows, 1024), "b.weight": (rows, 1024), "norm.weight": (1024,)}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def write_model(folder: Path, values: Arrays) -> Path:
    arrays = {name: bfloat16(value) for name, value in values.items()}
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


def change_byte(file: Path, at: int) -> None:
    with file.open("r+b") as out:
        out.seek(at)
        (old,) = out.read(1)
        out.seek(at)
        out.write(bytes([old ^ 1]))
