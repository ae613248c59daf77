"""`traj/1`: one session per line, plain or gzip.

    {"v":1, "dataset":str, "sid":str, "parent":str?, "start_s":float?, "block":int?,
     "hash_scope":str?, "shared_prefix":{"tools":int, "system":int}?,
     "turns":[{"keep":int, "append":int, "out":int, "out_kept":int,
               "gap":"start|tool|user|unknown", "gap_s":float|null, "t_s":float?, "llm_s":float?,
               "hash":{"keep":int, "add":[[first_id, count], ...]}?,
               "append_text":str? | "append_msgs":[{"role", "content"}, ...]?}, ...]}

Optional keys may be null; unknown ones are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

from benchmarks.replay.lines import json_lines
from benchmarks.replay.trace import MAX_TOKENS, Fields, Session, SharedPrefix, Turn

GAP_KINDS = ("start", "tool", "user", "unknown")


def read(path: Path) -> Iterator[Session]:
    """Yields the sessions in file order. Raises TraceError (file:line, field)."""
    first_line: dict[str, str] = {}
    scopes: dict[str, SharedPrefix] = {}
    for where, row in json_lines(path):
        session = parse(row, where)
        key = session.sid
        if key in first_line:
            raise Fields(row, where).fail("sid", f"already used at {first_line[key]}")
        first_line[key] = where
        yield _with_shared_ids(session, scopes)


def parse(row: Any, where: str) -> Session:
    """One line. Raises TraceError."""
    fields = Fields(row, where)
    if fields.get("v") != 1 or isinstance(fields.get("v"), bool):
        raise fields.fail("v", f"must be 1 (traj/1), not {short(fields.get('v'))}")
    block = fields.integer("block", 1) if fields.obj.get("block") is not None else None
    scope = fields.optional_text("hash_scope")
    turns: list[Turn] = []
    blocks = 0
    for index, entry in enumerate(fields.rows("turns", 1)):
        inner = Fields(entry, where, f"turns[{index}]")
        turn = _turn(inner, turns[-1].context if turns else 0)
        if inner.obj.get("hash") is not None:
            turn, blocks = _with_hash(inner, turn, block, scope, blocks)
        turns.append(turn)
    return Session(
        fields.text("dataset"),
        fields.text("sid"),
        tuple(turns),
        block,
        scope,
        shared=_shared_prefix(fields),
        parent=fields.optional_text("parent"),
        start_s=fields.seconds("start_s", optional=True),
        where=where,
    )


def _shared_prefix(fields: Fields) -> SharedPrefix | None:
    if fields.obj.get("shared_prefix") is None:
        return None
    inner = Fields(fields.get("shared_prefix"), fields.where, "shared_prefix")
    return SharedPrefix(inner.integer("tools"), inner.integer("system"))


def _with_shared_ids(session: Session, scopes: dict[str, SharedPrefix]) -> Session:
    """The session with the ids of its shared prefix, where its content is named by ids.

    The sizes are one user's; which ids they mean is seen in the first session of the scope that
    is long enough. Sub-agents have other tools and so other ids.
    """
    shared, scope, first = session.shared, session.hash_scope, session.turns[0]
    if shared is None or scope is None or session.block is None or first.hash_add is None:
        return session
    if scope not in scopes and first.prompt >= shared.tools + shared.system:
        ids = [start + i for start, count in first.hash_add for i in range(count)]
        covered = (shared.tools + shared.system) // session.block
        scopes[scope] = replace(shared, ids=tuple(ids[:covered]))
    return replace(session, shared=scopes.get(scope))


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
    return Turn(
        keep,
        append,
        out,
        out_kept,
        fields.seconds("gap_s"),
        t_s=fields.seconds("t_s", optional=True),
        llm_s=fields.seconds("llm_s", optional=True),
        texts=_texts(fields),
    )


def _texts(fields: Fields) -> tuple[str, ...] | None:
    """What the turn appends, one text per message; a message may have no content."""
    if fields.obj.get("append_text") is not None:
        return (fields.string("append_text"),)
    if fields.obj.get("append_msgs") is None:
        return None
    texts = []
    for index, message in enumerate(fields.rows("append_msgs")):
        inner = Fields(message, fields.where, f"{fields.prefix}.append_msgs[{index}]")
        if inner.obj.get("content") is not None:
            texts.append(inner.string("content"))
    return tuple(texts)


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
    return replace(turn, hash_keep=keep, hash_add=tuple(runs), hash_at=turn.keep), blocks
