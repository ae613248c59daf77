"""JSON lines from a plain or gzip file, with the place of each for error messages."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.replay.trace import TraceError

GZIP_MAGIC = b"\x1f\x8b"


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("file:line", value) per non-empty line; there is at least one.

    A gzip file is known by its content, whatever its name. Raises TraceError (file:line) when the
    file cannot be read, is not (gzip) UTF-8 text, holds nothing, or a line is not JSON.
    """
    number = rows = 0
    name = path.name or str(path)
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{name}:{number}"
                text = _text(line, where, first=number == 1)
                if text.strip():
                    rows += 1
                    yield where, _value(text, where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        # The line that could not be fetched is the one after the last that was.
        raise _problem(f"{name}:{number + 1}", f"damaged gzip: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise _problem(f"{name}:{number + 1}", f"cannot be read: {reason}") from error
    if not rows:
        raise _problem(f"{name}:1", "the file is empty")


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    with path.open("rb") as probe:
        packed = probe.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if not packed and path.suffix.lower() == ".gz":
        raise _problem(f"{path.name}:1", "the name ends in .gz, but this is no gzip file")
    return gzip.open(path, "rb") if packed else path.open("rb")


def _text(line: bytes, where: str, first: bool) -> str:
    """The first line may start with a byte order mark."""
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        utf16 = first and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        problem = "is UTF-16" if utf16 else f"is not UTF-8 (byte {error.start + 1} of the line)"
        raise _problem(where, f"{problem}; save the file as UTF-8") from error


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} (column {error.colno})"
        if text.strip() in ("{", "["):
            problem = "not a JSON object: is the file pretty-printed? Each row needs one line"
    except RecursionError:
        problem = "not read: nested too deeply"
    except ValueError:
        problem = "not read: a number has too many digits"
    raise _problem(where, problem)


def _problem(where: str, problem: str) -> TraceError:
    return TraceError(f"{where}: {problem}", field="trace")
