"""From a path or a generator's name to sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.replay import generator, mooncake, traj1
from benchmarks.replay.lines import json_lines
from benchmarks.replay.trace import Session, TraceError

READERS: dict[str, Callable[[Path], Iterator[Session]]] = {
    "traj1": traj1.read,
    "mooncake": mooncake.read,
}


def open_trace(path: Path, form: str = "auto") -> Iterator[Session]:
    """Sessions of a file. `auto` looks at the keys of the first line. Raises TraceError."""
    return READERS[detect(path) if form == "auto" else form](path)


def detect(path: Path) -> str:
    """The format's name by the first line. Raises TraceError."""
    where, row = next(json_lines(path))
    if isinstance(row, dict) and "turns" in row:
        return "traj1"
    if isinstance(row, dict) and "hash_ids" in row:
        return "mooncake"
    raise TraceError(
        f"{where}: neither traj/1 (has `turns`) nor Mooncake (has `hash_ids`); say --format",
        field="trace",
    )


def open_generator(name: str, seed: int) -> Iterator[Session]:
    """Endless sessions of one of the paper's sets (32k, 48k, 64k)."""
    if name not in generator.SHAPES:
        raise TraceError(
            f"no generated set {name!r}: one of {', '.join(generator.SHAPES)}", field="generate"
        )
    return generator.generate(name, seed)
