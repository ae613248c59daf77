"""Mooncake's trace format: JSON lines of requests.

    {"timestamp": ms?, "input_length": int, "output_length": int, "hash_ids": [int, ...]?,
     "session_id": str?, "delay": ms?}

Ids name blocks of 512 tokens (or another size) and are shared by the whole file; the last block
may be partial. A row without `session_id` is a session of one turn; rows with the same one are
its turns, `delay` after the reply before. What `input_length` of such rows counts differs: the
whole prompt (Mooncake), or only what is new (AIPerf). Unknown keys are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from benchmarks.replay.lines import json_lines
from benchmarks.replay.trace import MAX_TOKENS, Fields, Session, Turn
from dualpath_sglang.contract.errors import ConfigError

BLOCK_TOKENS = 512
COMMON_BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
INPUTS = ("auto", "whole", "new")


@dataclass(frozen=True)
class MooncakeOptions:
    """`block` in tokens. `inputs`: `input_length` counts the whole prompt or what is new; `auto`
    takes it for the whole prompt where a session's rows start with the same full block."""

    block: int = BLOCK_TOKENS
    inputs: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.block <= MAX_TOKENS:
            raise ConfigError(f"block must be 1 to {MAX_TOKENS:,} tokens", field="block")
        if self.inputs not in INPUTS:
            raise ConfigError(f"inputs must be one of {', '.join(INPUTS)}", field="inputs")


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: int
    out: int
    ids: tuple[int, ...] | None
    timestamp_s: float | None
    delay_s: float | None


def read(path: Path, options: MooncakeOptions | None = None) -> Iterator[Session]:
    """Yields sessions in the order of their first rows. Raises TraceError (file:line, field)."""
    options = options or MooncakeOptions()
    dataset = re.sub(r"(\.jsonl)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    sessions: dict[str, list[_Row]] = {}
    for index, (where, value) in enumerate(json_lines(path)):
        fields = Fields(value, where)
        sid = fields.optional_text("session_id") or f"request-{index:06d}"
        sessions.setdefault(sid, []).append(_row(fields, options.block))
    for sid, rows in sessions.items():
        yield _session(dataset, sid, rows, options)


def _row(fields: Fields, block: int) -> _Row:
    prompt = fields.integer("input_length", 1)
    out = fields.integer("output_length")
    if prompt + out > MAX_TOKENS:
        raise fields.fail("output_length", f"makes a request of more than {MAX_TOKENS:,} tokens")
    ids = None
    if fields.obj.get("hash_ids") is not None:
        ids = tuple(fields.block_id("hash_ids", value) for value in fields.rows("hash_ids"))
        if len(ids) != -(-prompt // block):
            raise fields.fail("hash_ids", _mismatch(prompt, len(ids), block))
    timestamp, delay = (_seconds(fields, name) for name in ("timestamp", "delay"))
    return _Row(fields.where, prompt, out, ids, timestamp, delay)


def _seconds(fields: Fields, name: str) -> float | None:
    """Of a field in milliseconds."""
    value = fields.seconds(name, optional=True)
    return None if value is None else value / 1e3


def _mismatch(prompt: int, ids: int, block: int) -> str:
    blocks = -(-prompt // block)
    text = f"has {ids} ids, {prompt} tokens are {blocks} blocks of {block}"
    fitting = [size for size in COMMON_BLOCKS if -(-prompt // size) == ids]
    return f"{text}: try --block {fitting[0]}" if fitting else f"{text} (--block says how long)"


def _session(dataset: str, sid: str, rows: Sequence[_Row], options: MooncakeOptions) -> Session:
    whole = _are_whole(rows, options)
    turns = _whole_prompts(rows, options.block) if whole else _new_inputs(rows)
    start, where = rows[0].timestamp_s, rows[0].where
    return Session(dataset, sid, tuple(turns), options.block, dataset, start_s=start, where=where)


def _are_whole(rows: Sequence[_Row], options: MooncakeOptions) -> bool:
    if options.inputs != "auto":
        return options.inputs == "whole"
    return any(
        _common(one, two) and min(one.prompt, two.prompt) >= options.block
        for one, two in pairwise(rows)
    )


def _common(one: _Row, two: _Row) -> int:
    """Ids that both rows start with."""
    both = list(zip(one.ids or (), two.ids or (), strict=False))
    return next((i for i, (a, b) in enumerate(both) if a != b), len(both))


def _new_inputs(rows: Sequence[_Row]) -> list[Turn]:
    """Each row's ids name what it appends; the output is kept."""
    turns: list[Turn] = []
    for row in rows:
        keep = turns[-1].context if turns else 0
        turns.append(_timed(Turn(keep, row.prompt, row.out, row.out), row, rows[0]))
        _check_context(turns[-1], row)
    return turns


def _whole_prompts(rows: Sequence[_Row], block: int) -> list[Turn]:
    """Each row's ids name its prompt from the start.

    Where all full blocks of the prompt before come again (or nothing has ids), the session goes
    on: with the output, if the prompt has room for it. Elsewhere the client rewrote its context
    after the blocks that are the same.
    """
    turns: list[Turn] = []
    before: _Row | None = None
    for row in rows:
        keep = 0
        if before is not None:
            common = _common(before, row) * block
            same = before.ids is None or common >= before.prompt // block * block
            goes_on = same and row.prompt >= before.prompt
            if goes_on and row.prompt < turns[-1].context:
                turns[-1] = replace(turns[-1], out_kept=0)
            keep = turns[-1].context if goes_on else min(common, before.prompt, row.prompt)
        turn = Turn(keep, row.prompt - keep, row.out, row.out, hash_at=keep)
        turns.append(_timed(turn, row, rows[0]))
        before = row
    return turns


def _timed(turn: Turn, row: _Row, first: _Row) -> Turn:
    """With the row's ids and times."""
    since = None
    if row.timestamp_s is not None and first.timestamp_s is not None:
        since = max(0.0, row.timestamp_s - first.timestamp_s)
    named = None if row.ids is None else tuple((block_id, 1) for block_id in row.ids)
    return replace(turn, hash_add=named, t_s=since, gap_s=None if row is first else row.delay_s)


def _check_context(turn: Turn, row: _Row) -> None:
    if turn.prompt + turn.out > MAX_TOKENS:
        problem = f"makes a context of more than {MAX_TOKENS:,} tokens"
        raise Fields({}, row.where).fail("input_length", problem)
