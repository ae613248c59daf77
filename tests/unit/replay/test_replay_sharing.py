"""What sessions share they share at every scale: equal ids are equal tokens, others are not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay import traj1
from benchmarks.replay.blocks import pieces
from benchmarks.replay.scale import scale
from benchmarks.replay.sharing import main, part, shared_part
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, SharedPrefix, Turn

SOURCE = TokenSource(TokenSpace(2**31 - 1))
blocks = st.integers(1, 100)
factors = st.floats(0.001, 4)


def first_turn(ids: Sequence[int], block: int, tail: int, scope: str = "x") -> Session:
    turn = Turn(0, len(ids) * block + tail, 1, 1, None, 0, tuple((i, 1) for i in ids))
    return Session("d", f"{ids}{tail}", (turn,), block, scope)


def prompt(session: Session, factor: float = 1.0) -> list[int]:
    (tokens,) = SOURCE.appended(scale(session, factor))
    return tokens


def differ(one: list[int], two: list[int]) -> bool:
    """At every position; with so many ids chance does not make two equal."""
    return all(a != b for a, b in zip(one, two, strict=False))


@given(blocks, st.integers(0, 30), st.integers(1, 20), st.integers(1, 20), factors)
def test_equal_ids_are_equal_tokens_and_other_ids_others(
    block: int, common: int, one: int, two: int, factor: float
) -> None:
    """Two prompts with `common` blocks at their start: their tokens part where their ids do."""
    shared = list(range(common))
    first = first_turn([*shared, *range(1000, 1000 + one)], block, tail=3 * block)
    second = first_turn([*shared, *range(2000, 2000 + two)], block, tail=block)
    left, right = prompt(first, factor), prompt(second, factor)
    same = min(round(common * block * factor), len(left), len(right))
    assert left[:same] == right[:same]
    assert differ(left[same:], right[same:])


@given(blocks, st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 2000), factors)
def test_pieces_cover_what_has_ids_once_and_in_order(
    block: int, ids: list[int], at: int, factor: float
) -> None:
    append = max(1, round(7 * block * factor))
    turn = Turn(0, append, 1, 1, hash_at=at)
    end = 0
    for piece in pieces(turn, ids, block, factor):
        assert (piece.at, piece.count > 0) == (end, True)
        end += piece.count
    left = round((len(ids) * block - at) * factor)
    assert end == max(0, min(append, left))


@given(blocks, st.integers(1, 20), st.integers(0, 500), st.integers(1, 500))
def test_unscaled_tokens_are_those_of_their_block_and_place(
    block: int, count: int, start: int, append: int
) -> None:
    """Token p is named by the id of its block and by p mod block, wherever the append starts."""
    ids = list(range(100, 100 + count))
    turn = Turn(start, append, 1, 1, hash_at=start)
    named = {
        piece.at + i: (piece.ids, piece.skip + i)
        for piece in pieces(turn, ids, block, 1.0)
        for i in range(piece.count)
    }
    for i in range(append):
        position = start + i
        inside = position < count * block
        wanted = ((100 + position // block,), position % block) if inside else None
        assert named.get(i) == wanted


def test_large_ids_are_not_cut_off() -> None:
    """1 and 2**32 + 1 are different content."""
    assert prompt(first_turn([1], 16, 0)) != prompt(first_turn([2**32 + 1], 16, 0))


def user(scope: str, tools: int, system: int, ids: Sequence[int], block: int = 10) -> Session:
    session = first_turn(ids, block, 0, scope)
    covered = (tools + system) // block
    shared = SharedPrefix(tools, system, tuple(ids[:covered]))
    return replace(session, shared=shared, parent=scope)


@pytest.mark.parametrize("factor", [1.0, 0.25, 0.03])
def test_users_with_the_same_tools_share_them(factor: float) -> None:
    """Ids are each user's own; sizes of tools and system prompt say what is the same."""
    one = prompt(user("u1", 200, 100, range(1, 61)), factor)
    same = prompt(user("u2", 200, 100, range(501, 561)), factor)
    tools = prompt(user("u3", 200, 90, range(1, 61)), factor)
    none = prompt(user("u4", 190, 110, range(1, 61)), factor)
    lengths = [round(tokens * factor) for tokens in (300, 200, 0)]
    for other, length in zip((same, tools, none), lengths, strict=True):
        assert one[:length] == other[:length]
        assert differ(one[length:], other[length:])


def test_a_shared_prefix_without_ids_is_the_start_of_the_first_prompt() -> None:
    made = []
    for sid, shared in (("a", (20, 5)), ("b", (20, 5)), ("c", (20, 9)), ("d", None)):
        prefix = None if shared is None else SharedPrefix(*shared)
        made.append(Session("d", sid, (Turn(0, 40, 1, 1), Turn(41, 9, 1, 1)), shared=prefix))
    a, b, c, d = (SOURCE.appended(scale(session, 0.5)) for session in made)
    assert a[0][:12] == b[0][:12]
    assert a[0][12:] != b[0][12:]
    assert a[0][:10] == c[0][:10]
    assert a[0][10:12] != c[0][10:12]
    assert len(a[0]) == 20
    assert differ(a[0], d[0])
    assert a[1] != b[1]


def row(sid: str, ids: list[list[int]], tokens: int) -> dict[str, object]:
    turn = {
        "keep": 0, "append": tokens, "out": 1, "out_kept": 1, "gap": "start", "gap_s": None,
        "hash": {"keep": 0, "add": ids},
    }  # fmt: skip
    return {
        "v": 1, "dataset": "d", "sid": sid, "parent": "u", "block": 10, "hash_scope": "u",
        "shared_prefix": {"tools": 30, "system": 10}, "turns": [turn],
    }  # fmt: skip


def test_the_ids_of_the_shared_prefix_are_those_of_the_first_long_session(tmp_path: Path) -> None:
    """A sub-agent has other tools: neither is it taken for the user's, nor does it share them."""
    rows = [row("agent", [[900, 2]], 20), row("main", [[1, 5]], 50), row("again", [[1, 3]], 30)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    agent, main, again = traj1.read(path)
    assert agent.shared is None
    assert main.shared == again.shared == SharedPrefix(30, 10, (1, 2, 3, 4))


def weka() -> Path:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "traces"
    return Path(os.environ.get("DUALPATH_TEST_TRACES", beside)) / "weka.dev.jsonl.gz"


@pytest.mark.skipif(not weka().exists(), reason="no real traces here (DUALPATH_TEST_TRACES)")
@pytest.mark.parametrize("factor", [0.1, 0.005])
def test_real_sessions_share_the_same_part_at_every_scale(factor: float) -> None:
    """Of all first prompts the part that an earlier one starts with too."""
    assert shared_at(factor) == pytest.approx(shared_at(1.0), abs=0.01)


@lru_cache
def shared_at(factor: float) -> float:
    sessions = (s for s in traj1.read(weka()) if s.turns[0].append < 30_000)
    return part(scale(session, factor) for session in islice(sessions, 60))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8))
def test_the_shared_part_is_what_a_boundless_cache_would_hold(prompts: list[list[int]]) -> None:
    cached: set[tuple[int, ...]] = set()
    hits = 0
    for tokens in prompts:
        starts = [tuple(tokens[: i + 1]) for i in range(len(tokens))]
        hits += sum(start in cached for start in starts)
        cached.update(starts)
    total = sum(map(len, prompts))
    assert shared_part(prompts) == pytest.approx(hits / total if total else 0.0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    rows = [row("one", [[1, 5]], 50), row("two", [[1, 3], [9, 2]], 50)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert main(["--trace", str(path), "--scale", "1", "0.2"]) == 0
    assert capsys.readouterr().out == "".join(
        f"scale {scale}: 30.0 % of first prompts are shared\n" for scale in ("1", "0.2")
    )
    assert main(["--trace", str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl:1: cannot be read" in capsys.readouterr().err
