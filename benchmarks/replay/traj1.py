"""`traj/1`: one session per line, plain or gzip.

    {"v":1, "dataset":str, "sid":str, "block":int?, "hash_scope":str?,
     "turns":[{"keep":int, "append":int, "out":int, "out_kept":int,
               "gap":"start|tool|user|unknown", "gap_s":float|null,
               "hash":{"keep":int, "add":[[first_id, count], ...]}?}, ...]}

Unknown keys are ignored, and so is recorded text: a replay goes by token counts, because text
has another length under every tokenizer and lengths are what is to be reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from benchmarks.replay.lines import json_lines
from benchmarks.replay.trace import MAX_TOKENS, Fields, Session, Turn

GAP_KINDS = ("start", "tool", "user", "unknown")


def read(path: Path) -> Iterator[Session]:
    """Yields the sessions in file order. Raises TraceError (file:line, field)."""
    first_line: dict[str, str] = {}
    for where, row in json_lines(path):
        session = parse(row, where)
        key = session.sid
        if key in first_line:
            raise Fields(row, where).fail("sid", f"already used at {first_line[key]}")
        first_line[key] = where
        yield session


def parse(row: Any, where: str) -> Session:
    """One line. Raises TraceError."""
    fields = Fields(row, where)
    if fields.get("v") != 1 or isinstance(fields.get("v"), bool):
        raise fields.fail("v", f"must be 1 (traj/1), not {short(fields.get('v'))}")
    block = fields.integer("block", 1) if fields.obj.get("block") is not None else None
    scope = fields.text("hash_scope") if fields.obj.get("hash_scope") is not None else None
    turns: list[Turn] = []
    blocks = 0
    for index, entry in enumerate(fields.rows("turns", 1)):
        inner = Fields(entry, where, f"turns[{index}]")
        turn = _turn(inner, turns[-1].context if turns else 0)
        if "hash" in inner.obj:
            turn, blocks = _with_hash(inner, turn, block, scope, blocks)
        turns.append(turn)
    dataset, sid = fields.text("dataset"), fields.text("sid")
    return Session(dataset, sid, tuple(turns), block, scope, where=where)


def _turn(fields: Fields, context: int) -> Turn:
    keep = fields.integer("keep")
    if keep > context:
        raise fields.fail("keep", f"is {keep}, more than the {context} tokens of context before it")
    append = fields.integer("append")
    if keep + append < 1:
        raise fields.fail("append", "the prompt (keep + append) must have at least one token")
    out = fields.integer("out")
    if keep + append + out > MAX_TOKENS:
        raise fields.fail("append", f"makes a turn of more than {MAX_TOKENS:,} tokens")
    out_kept = fields.integer("out_kept")
    if out_kept > out:
        raise fields.fail("out_kept", f"is {out_kept}, more than the {out} generated")
    if fields.get("gap") not in GAP_KINDS:
        raise fields.fail("gap", f"must be one of {', '.join(GAP_KINDS)}")
    return Turn(keep, append, out, out_kept, fields.seconds("gap_s"))


def _with_hash(
    fields: Fields, turn: Turn, block: int | None, scope: str | None, before: int
) -> tuple[Turn, int]:
    """The turn with its block ids, and how many blocks its prompt has."""
    if block is None or scope is None:
        raise fields.fail("hash", "needs `block` and `hash_scope` on the session")
    hashed = Fields(fields.get("hash"), fields.where, f"{fields.prefix}.hash")
    keep = hashed.integer("keep")
    if keep > before:
        raise hashed.fail("keep", f"is {keep}, more than the {before} blocks of the turn before")
    runs = []
    for index, run in enumerate(hashed.rows("add")):
        name = f"add[{index}]"
        good = isinstance(run, list) and len(run) == 2 and all(type(x) is int for x in run)
        if not good or run[1] < 1:
            raise hashed.fail(name, "must be [first id, count of at least 1]")
        runs.append((hashed.block_id(name, run[0]), run[1]))
    blocks = keep + sum(count for _, count in runs)
    if blocks != turn.prompt // block:
        raise hashed.fail("add", f"names {blocks} blocks, the prompt has {turn.prompt // block}")
    made = Turn(turn.keep, turn.append, turn.out, turn.out_kept, turn.gap_s, keep, tuple(runs))
    return made, blocks
