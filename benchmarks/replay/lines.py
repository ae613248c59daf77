"""JSON lines from a plain or gzip file, with the place of each for error messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks.replay.trace import TraceError


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("file:line", value) per non-empty line.

    Raises TraceError when the file cannot be read, is not (gzip) UTF-8 text, or a line is not JSON.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path.name}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(f"{path.name}:{number}: not JSON: {error}", field="trace") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(
            f"{path}: cannot be read after line {number}: {error}", field="trace"
        ) from error
