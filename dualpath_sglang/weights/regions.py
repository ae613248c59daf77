"""Where the tensors of a weights file lie, as far as its format says so without being loaded.

safetensors   a JSON header lists name, type, shape and place of every tensor
.bin, .pt     a zip file: its directory lists every storage, with the checksum of its bytes
others        gguf and old pickles: the file in equal parts
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dualpath_sglang.contract.errors import WeightsUnreadable

MAX_HEADER = 256 << 20
"""Bytes; the format itself allows 100 MB."""
PART_BYTES = 16 << 20
HEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Region:
    """Bytes [begin, end) of a file: one tensor, or a part of a file of unknown format."""

    begin: int
    end: int


@dataclass(frozen=True)
class Outline:
    """about: what the file says of its tensors: their names, types and shapes among it."""

    size: int
    about: bytes
    regions: tuple[Region, ...]


def outline(path: Path) -> Outline:
    """Raises WeightsUnreadable for a file that is cut short or that its header does not fit."""
    try:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            return _safetensors(path, size)
        if zipfile.is_zipfile(path):
            return _zip(path, size)
    except (OSError, ValueError, KeyError, TypeError, struct.error, zipfile.BadZipFile) as error:
        raise WeightsUnreadable(f"{str(path)!r} is no whole file of weights: {error}") from error
    return _opaque(size)


def _safetensors(path: Path, size: int) -> Outline:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = file.read(length)
    start = 8 + length
    tensors = json.loads(header)
    regions = []
    for name, facts in tensors.items():
        if name == "__metadata__":
            continue
        begin, end = facts["data_offsets"]
        if not 0 <= begin <= end <= size - start:
            raise ValueError(f"tensor {name!r} lies outside of the file")
        regions.append(Region(start + begin, start + end))
    regions.sort(key=lambda region: region.begin)
    return Outline(size, header, tuple(regions))


def _zip(path: Path, size: int) -> Outline:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    about = json.dumps([[e.filename, e.file_size, e.CRC] for e in entries]).encode()
    # From the entry's own header on: where exactly its bytes begin does not matter here.
    regions = (
        Region(e.header_offset, min(e.header_offset + e.compress_size + 128, size)) for e in entries
    )
    return Outline(size, about, tuple(regions))


def _opaque(size: int) -> Outline:
    head = [Region(at, min(at + 1024, size)) for at in range(0, min(HEAD_BYTES, size), 1024)]
    parts = [Region(at, min(at + PART_BYTES, size)) for at in range(0, size, PART_BYTES)]
    return Outline(size, b"", (*head, *parts))
