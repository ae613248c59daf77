"""Mooncake's rows: lone requests, and rows that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.replay import mooncake, sources
from benchmarks.replay.mooncake import MooncakeOptions
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, TraceError
from dualpath_sglang.contract.errors import ConfigError

SOURCE = TokenSource(TokenSpace(1_000_000))
LONE = {"timestamp": 27, "input_length": 600, "output_length": 8, "hash_ids": [4, 7]}


def rows(tmp_path: Path, *values: dict[str, Any]) -> Path:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def of(session_id: str, length: int, ids: list[int] | None = None, **more: Any) -> dict[str, Any]:
    made = {"session_id": session_id, "input_length": length, "output_length": 8, **more}
    return made if ids is None else made | {"hash_ids": ids}


def sizes(session: Session) -> list[tuple[int, int, int]]:
    return [(turn.keep, turn.append, turn.out_kept) for turn in session.turns]


def test_lone_requests(tmp_path: Path) -> None:
    first, second = sources.open_trace(rows(tmp_path, LONE, LONE))
    assert first.sid != second.sid
    assert first.dataset == first.hash_scope == "m"
    assert first.start_s == 0.027
    (turn,) = first.turns
    assert (turn.keep, turn.append, turn.out, turn.hash_add) == (0, 600, 8, ((4, 1), (7, 1)))


def test_rows_of_a_session_are_its_turns_wherever_they_stand(tmp_path: Path) -> None:
    """The second row's prompt goes on from the first one's prompt and output."""
    path = rows(
        tmp_path,
        of("a", 600, [1, 2], timestamp=0),
        of("b", 512, [1], timestamp=900),
        of("a", 700, [1, 2], delay=500),
    )
    a, b = sources.open_trace(path)
    assert (a.sid, b.sid) == ("a", "b")
    assert sizes(a) == [(0, 600, 8), (608, 92, 8)]
    assert [turn.gap_s for turn in a.turns] == [None, 0.5]
    assert (b.start_s, sizes(b)) == (0.9, [(0, 512, 8)])
    whole = SOURCE.appended(Session("m", "x", b.turns, 512, "m"))[0]
    first, second = SOURCE.appended(a)
    assert first[:512] == whole
    block_2 = SOURCE.stream(["block", "m", 2], 188)
    assert first[512:] == block_2[:88]
    assert second == block_2[96:188]


def test_timestamps_instead_of_delays(tmp_path: Path) -> None:
    path = rows(
        tmp_path, of("a", 600, [1, 2], timestamp=1000), of("a", 700, [1, 2], timestamp=1500)
    )
    (session,) = sources.open_trace(path)
    assert session.start_s == 1.0
    assert [(turn.t_s, turn.gap_s) for turn in session.turns] == [(0.0, None), (0.5, None)]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (of("a", 1200, [1, 2, 9]), [(0, 1100, 8), (1108, 92, 8)]),
        (of("a", 1104, [1, 2, 3]), [(0, 1100, 0), (1100, 4, 8)]),
        (of("a", 1100, [1, 2, 3]), [(0, 1100, 0), (1100, 0, 8)]),
        (of("a", 1090, [1, 2, 3]), [(0, 1100, 8), (1090, 0, 8)]),
        (of("a", 1300, [1, 7, 3]), [(0, 1100, 8), (512, 788, 8)]),
    ],
    ids=["goes-on", "output-dropped", "same-again", "shorter", "rewritten"],
)
def test_what_a_whole_prompt_keeps(
    tmp_path: Path, second: dict[str, Any], expected: list[tuple[int, int, int]]
) -> None:
    (session,) = sources.open_trace(rows(tmp_path, of("a", 1100, [1, 2, 3]), second))
    assert sizes(session) == expected


def test_inputs_that_are_only_what_is_new(tmp_path: Path) -> None:
    """AIPerf's reading: lengths and ids of a row are those of its own text."""
    path = rows(tmp_path, of("a", 300), of("a", 150, delay=2), of("a", 700, [5, 6]))
    (session,) = sources.open_trace(path)
    assert sizes(session) == [(0, 300, 8), (308, 150, 8), (466, 700, 8)]
    assert SOURCE.appended(session)[2][:512] == SOURCE.stream(["block", "m", 5], 512)
    said = MooncakeOptions(inputs="whole")
    assert sizes(*sources.open_trace(path, "auto", said))[1] == (0, 150, 8)
    same = rows(tmp_path, of("a", 600, [1, 2]), of("a", 600, [1, 2]))
    assert sizes(*mooncake.read(same, MooncakeOptions(inputs="new")))[1] == (608, 600, 8)


def test_other_sizes_of_blocks(tmp_path: Path) -> None:
    path = rows(tmp_path, {**LONE, "input_length": 40, "hash_ids": [1, 2, 3]})
    with pytest.raises(TraceError, match=r"3 ids, 40 tokens are 1 blocks of 512: try --block 16$"):
        list(mooncake.read(path))
    (session,) = mooncake.read(path, MooncakeOptions(block=16))
    (tokens,) = SOURCE.appended(session)
    assert tokens[16:32] == SOURCE.stream(["block", "m", 2], 16)
    odd = rows(tmp_path, {**LONE, "input_length": 40, "hash_ids": [1] * 7})
    with pytest.raises(TraceError, match=r"\(--block says how long\)"):
        list(mooncake.read(odd))


def test_options_that_are_wrong_or_for_another_format(tmp_path: Path) -> None:
    for bad in ({"block": 0}, {"block": 2**40}, {"inputs": "some"}):
        with pytest.raises(ConfigError):
            MooncakeOptions(**bad)  # type: ignore[arg-type]
    turn = {"keep": 0, "append": 9, "out": 1, "out_kept": 1, "gap": "start", "gap_s": None}
    path = rows(tmp_path, {"v": 1, "dataset": "d", "sid": "s", "turns": [turn]})
    with pytest.raises(ConfigError, match="for Mooncake's format"):
        sources.open_trace(path, "auto", MooncakeOptions())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input_length": 0}, "input_length:"),
        ({"input_length": 1025}, "hash_ids: has 2 ids"),
        ({"output_length": -1}, "output_length:"),
        ({"hash_ids": [1, "x"]}, "hash_ids:"),
        ({"timestamp": "soon"}, "timestamp:"),
        ({"delay": -1}, "delay:"),
        ({"session_id": 7}, "session_id:"),
    ],
)
def test_refuses_and_names_line_and_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    path = rows(tmp_path, LONE, {**LONE, **change})
    with pytest.raises(TraceError, match=r"^m\.jsonl:2: " + field):
        list(mooncake.read(path))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_session_is_a_chain(tmp_path: Path, data: st.DataObject) -> None:
    """Prompts have the recorded lengths, and keep is never more than the context before."""
    block = data.draw(st.integers(1, 8))
    values = []
    for _ in range(data.draw(st.integers(1, 8))):
        length = data.draw(st.integers(1, 40))
        ids = [data.draw(st.integers(0, 2)) for _ in range(-(-length // block))]
        values.append(of(data.draw(st.sampled_from("ab")), length, ids))
    options = MooncakeOptions(block, data.draw(st.sampled_from(["whole", "new"])))
    for session in mooncake.read(rows(tmp_path, *values), options):
        lengths = [v["input_length"] for v in values if v["session_id"] == session.sid]
        context = 0
        for turn, length in zip(session.turns, lengths, strict=True):
            assert 0 <= turn.keep <= context
            assert length == (turn.prompt if options.inputs == "whole" else turn.append)
            context = turn.context
        assert all(SOURCE.appended(session)[0])
