"""Parsers: what they take, and how clearly they refuse."""

from __future__ import annotations

import copy
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay import sources, traj1
from benchmarks.replay.trace import TraceError

ROW: dict[str, Any] = {
    "v": 1,
    "dataset": "tiny",
    "sid": "a/b",
    "parent": "user",
    "model": None,
    "tok": "none",
    "start_s": 3,
    "block": 4,
    "hash_scope": "scope",
    "something_new": {"is": "ignored"},
    "turns": [
        {
            "keep": 0,
            "append": 10,
            "out": 3,
            "out_kept": 2,
            "gap": "start",
            "gap_s": None,
            "hash": {"keep": 0, "add": [[5, 2]]},
            "append_text": "ignored",
        },
        {
            "keep": 12,
            "append": 4,
            "out": 2,
            "out_kept": 2,
            "gap": "tool",
            "gap_s": 1.5,
            "t_s": 7.5,
            "llm_s": None,
            "hash": {"keep": 2, "add": [[9, 1], [3, 1]]},
        },
        {"keep": 5, "append": 1, "out": 1, "out_kept": 1, "gap": "user", "gap_s": 0},
    ],
}


def write(path: Path, *rows: object) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_reads_traj1_plain_and_gzip(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROW, {**ROW, "sid": "other"})
    first, second = sources.open_trace(path)
    assert (first.dataset, first.sid, first.block, first.hash_scope) == ("tiny", "a/b", 4, "scope")
    assert second.sid == "other"
    one, two, three = first.turns
    assert (one.prompt, one.context) == (10, 12)
    assert (two.hash_keep, two.hash_add, two.gap_s) == (2, ((9, 1), (3, 1)), 1.5)
    assert (one.hash_at, two.hash_at, two.t_s, two.llm_s) == (0, 12, 7.5, None)
    assert (first.parent, first.start_s) == ("user", 3.0)
    assert (second.parent, second.start_s) == ("user", 3.0)
    assert (three.keep, three.hash_add) == (5, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.update(v=2), "v:"),
        (lambda r: r.pop("sid"), "sid: is missing"),
        (lambda r: r.update(sid=""), "sid:"),
        (lambda r: r.update(turns=[]), "turns:"),
        (lambda r: r.update(block=0), "block:"),
        (lambda r: r["turns"][0].update(append=-1), "turns[0].append:"),
        (lambda r: r["turns"][0].update(append=True), "turns[0].append:"),
        (lambda r: r["turns"][0].update(append=1.5), "turns[0].append:"),
        (lambda r: r["turns"][0].update(append=0, hash={"keep": 0, "add": []}), "turns[0].append:"),
        (lambda r: r["turns"][0].update(keep=1), "turns[0].keep:"),
        (lambda r: r["turns"][1].update(keep=13), "turns[1].keep: is 13"),
        (lambda r: r["turns"][1].update(out_kept=3), "turns[1].out_kept:"),
        (lambda r: r["turns"][1].update(gap="lunch"), "turns[1].gap:"),
        (lambda r: r["turns"][1].update(gap_s=-1), "turns[1].gap_s:"),
        (lambda r: r["turns"][1].update(gap_s=float("nan")), "turns[1].gap_s:"),
        (lambda r: r["turns"][1].pop("gap_s"), "turns[1].gap_s: is missing"),
        (lambda r: r["turns"][1].update(t_s="now"), "turns[1].t_s:"),
        (lambda r: r.update(start_s=[]), "start_s:"),
        (lambda r: r.update(parent=7), "parent:"),
        (lambda r: r.update(shared_prefix={"tools": 5}), "shared_prefix.system: is missing"),
        (lambda r: r.update(shared_prefix=5), "shared_prefix: must be a JSON object"),
        (lambda r: r["turns"].append(7), "turns[3]: must be a JSON object"),
        (lambda r: r["turns"][1]["hash"].update(keep=3), "turns[1].hash.keep:"),
        (lambda r: r["turns"][1]["hash"].update(add=[[1, 0]]), "turns[1].hash.add[0]:"),
        (lambda r: r["turns"][1]["hash"].update(add=[[1, 1]]), "turns[1].hash.add: names 3"),
        (lambda r: r.pop("block"), "turns[0].hash: needs `block`"),
    ],
)
def test_traj1_refuses_and_names_line_and_field(tmp_path: Path, change: Any, field: str) -> None:
    bad = copy.deepcopy(ROW)
    bad["sid"] = "bad"
    change(bad)
    path = write(tmp_path / "t.jsonl", ROW, bad)
    with pytest.raises(TraceError) as caught:
        list(traj1.read(path))
    assert caught.value.message.startswith("t.jsonl:2: ")
    assert field in caught.value.message


def test_traj1_refuses_a_sid_used_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", ROW, ROW)
    with pytest.raises(TraceError, match=r"t\.jsonl:2: sid: already used at t\.jsonl:1"):
        list(traj1.read(path))


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        sources.open_trace(tmp_path / "absent.jsonl")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(TraceError, match="neither traj/1"):
        sources.open_trace(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text(json.dumps(ROW) + "\n{oops\n")
    with pytest.raises(TraceError, match=r"y\.jsonl:2: not JSON"):
        list(sources.open_trace(tmp_path / "y.jsonl"))


def real_traces() -> list[Path]:
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("DUALPATH_TEST_TRACES", root.parent / "shared" / "traces"))
    return sorted(p for p in folder.glob("*.jsonl*") if p.is_file()) if folder.is_dir() else []


@pytest.mark.skipif(not real_traces(), reason="no real traces here (DUALPATH_TEST_TRACES)")
def test_real_traces_are_read_whole() -> None:
    for path in real_traces():
        sessions = list(sources.open_trace(path))
        assert len(sessions) > 50, path.name
        assert all(session.turns for session in sessions)
