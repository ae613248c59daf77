"""Damaged trace files: one line with file, line and reason, whatever is wrong, and at once."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.cli import main as dualpath
from benchmarks.replay import mooncake, sources
from benchmarks.replay.trace import TraceError

ROW: dict[str, Any] = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
TURN = {"keep": 0, "append": 9, "out": 1, "out_kept": 1, "gap": "start", "gap_s": None}
SESSION = {"v": 1, "dataset": "d", "sid": "s", "turns": [TURN]}
LINE = json.dumps(ROW).encode() + b"\n"
PACKED = gzip.compress(LINE * 2000)


def number(key: str, digits: int) -> bytes:
    return LINE.replace(f'"{key}": {ROW[key]}'.encode(), f'"{key}": {"9" * digits}'.encode())


def session(**turn: Any) -> bytes:
    return json.dumps({**SESSION, "turns": [{**TURN, **turn}]}).encode() + b"\n"


def overwritten(data: bytes) -> bytes:
    return data[:40] + bytes(byte ^ 255 for byte in data[40:60]) + data[60:]


DAMAGED = [
    ("gzip-overwritten.jsonl.gz", overwritten(PACKED), 1, "damaged gzip: "),
    ("gzip-cut.jsonl.gz", PACKED[:100], None, "damaged gzip: "),
    ("gzip-none.jsonl.GZ", LINE, 1, "this is no gzip file"),
    ("utf16.jsonl", LINE.decode().encode("utf-16"), 1, "is UTF-16; save the file as UTF-8"),
    ("latin1.jsonl", LINE + b'{"a": "\xe9"}\n', 2, "is not UTF-8 (byte 8 of the line)"),
    ("pretty.jsonl", json.dumps(ROW, indent=1).encode(), 1, "is the file pretty-printed?"),
    ("array.jsonl", b"[" + LINE.strip() + b"]", 1, "neither traj/1"),
    ("cut.jsonl", LINE + LINE[:30], 2, "not JSON: "),
    ("deep.jsonl", b'{"turns":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, "nested too deeply"),
    ("digits.jsonl", LINE + number("input_length", 5000), 2, "too many digits"),
    ("length.jsonl", number("input_length", 4000), 1, "input_length: must be at most 16,777,216"),
    ("time.jsonl", number("timestamp", 4000), 1, "timestamp: must be"),
    ("sum.jsonl", number("output_length", 8), 1, "output_length: must be at most"),
    ("empty.jsonl", b"", 1, "the file is empty"),
    ("blank.jsonl", b"\n \n", 1, "the file is empty"),
    ("empty.jsonl.gz", gzip.compress(b""), 1, "the file is empty"),
    ("append.jsonl", session(append=10**12), 1, "turns[0].append: must be at most 16,777,216"),
    ("turn.jsonl", session(out=2**24), 1, "turns[0].append: makes a turn of more than"),
    ("gap.jsonl", session(gap_s=10**400), 1, "turns[0].gap_s: must be"),
    ("half.jsonl", json.dumps({**SESSION, "sid": "\ud800"}).encode(), 1, "half a surrogate pair"),
    (
        "blocks.jsonl",
        json.dumps({**ROW, "hash_ids": [1, 2**64]}).encode(),
        1,
        "hash_ids: must hold block ids (64-bit integers)",
    ),
]


@pytest.mark.parametrize(("name", "data", "line", "reason"), DAMAGED, ids=[d[0] for d in DAMAGED])
@pytest.mark.timeout(20)
def test_one_line_with_file_line_and_reason(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: bytes,
    line: int | None,
    reason: str,
) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    path.write_bytes(data)
    assert dualpath(words(path, out)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dualpath replay: {name}:{'' if line is None else f'{line}: '}")
    assert reason in said
    assert len(said) < 300
    assert not out.exists()


def words(trace: Path, out: Path, *more: str) -> list[str]:
    url = "http://127.0.0.1:9"
    return [
        "replay",
        "--url",
        url,
        "--vocab-size",
        "9",
        "--out",
        str(out),
        "--trace",
        str(trace),
        *more,
    ]


@pytest.mark.parametrize("scale", ["1e308", "1e300", "1e6"])
def test_a_scale_beyond_all_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(session(append=1000, keep=0))
    assert dualpath(words(path, tmp_path / "out", "--scale", scale)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("dualpath replay: t.jsonl:1: turns[0]: scaled by 1e+")


def test_an_out_folder_that_cannot_be_made_is_known_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(session())
    assert dualpath(words(path, path / "out")) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "cannot be made: Not a directory (out)" in said


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("mark.jsonl", lambda data: b"\xef\xbb\xbf" + data),
        ("T6.JSONL.GZ", gzip.compress),
        ("renamed.jsonl", gzip.compress),
        ("windows.jsonl", lambda data: data.replace(b"\n", b"\r\n") + b"\r\n"),
        ("mark.jsonl.gz", lambda data: gzip.compress(b"\xef\xbb\xbf" + data)),
    ],
)
def test_what_is_merely_unusual_is_read(
    tmp_path: Path, name: str, encode: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(encode(LINE * 2))
    assert [s.turns[0].append for s in sources.open_trace(path)] == [600, 600]


def test_the_name_of_the_data_set_does_not_depend_on_packing(tmp_path: Path) -> None:
    for name in ("m.jsonl", "m.jsonl.gz", "m.JSONL.GZ"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(LINE))
        if not name.lower().endswith(".gz"):
            path.write_bytes(LINE)
        assert [s.dataset for s in mooncake.read(path)] == ["m"]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_a_trace_error_with_its_place(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of a good file overwritten, cut out or put in, packed or not."""
    packed = data.draw(st.booleans())
    good = session(append=300) * 2 if data.draw(st.booleans()) else LINE * 3
    raw = bytearray(gzip.compress(good) if packed else good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(bytes(raw))
    said = f"{path.name}:1"
    try:
        assert all(found.turns for found in sources.open_trace(path))
    except TraceError as error:
        said = error.message
    assert re.match(rf"{re.escape(path.name)}:\d", said)
