"""From a path or a generator's name to sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.replay import generator, mooncake, traj1
from benchmarks.replay.lines import json_lines
from benchmarks.replay.mooncake import MooncakeOptions
from benchmarks.replay.trace import Session, TraceError
from dualpath_sglang.contract.errors import ConfigError

FORMATS = ("traj1", "mooncake")


def open_trace(
    path: Path, form: str = "auto", options: MooncakeOptions | None = None
) -> Iterator[Session]:
    """Sessions of a file. `auto` looks at the keys of the first line. Raises TraceError, and
    ConfigError for options that the format does not have."""
    form = detect(path) if form == "auto" else form
    if form == "mooncake":
        return mooncake.read(path, options)
    if options is not None:
        raise ConfigError(
            f"{path.name} is traj/1: block and inputs are for Mooncake's format", field="block"
        )
    return traj1.read(path)


def detect(path: Path) -> str:
    """The format's name by the first line. Raises TraceError."""
    where, row = next(json_lines(path))
    if isinstance(row, dict) and "turns" in row:
        return "traj1"
    if isinstance(row, dict) and "input_length" in row:
        return "mooncake"
    raise TraceError(
        f"{where}: neither traj/1 (has `turns`) nor Mooncake (has `input_length`); say --format",
        field="trace",
    )


def open_generator(name: str, seed: int) -> Iterator[Session]:
    """Endless sessions of one of the paper's sets (32k, 48k, 64k)."""
    if name not in generator.SHAPES:
        raise TraceError(
            f"no generated set {name!r}: one of {', '.join(generator.SHAPES)}", field="generate"
        )
    return generator.generate(name, seed)
