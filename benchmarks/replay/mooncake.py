"""Mooncake's trace format: JSON lines of single requests, each a session of one turn.

    {"timestamp": ms, "input_length": int, "output_length": int, "hash_ids": [int, ...]}

Ids name blocks of 512 tokens and are shared by the whole file; the last block may be partial.
Unknown keys are ignored; so are timestamps, since arrivals are the driver's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.replay.lines import json_lines
from benchmarks.replay.trace import MAX_TOKENS, Fields, Session, Turn

BLOCK_TOKENS = 512


def read(path: Path) -> Iterator[Session]:
    """Yields the requests in file order. Raises TraceError (file:line, field)."""
    name = re.sub(r"(\.jsonl)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    for index, (where, row) in enumerate(json_lines(path)):
        yield parse(row, where, name, index)


def parse(row: Any, where: str, dataset: str, index: int) -> Session:
    """One line. Raises TraceError."""
    fields = Fields(row, where)
    fields.seconds("timestamp")
    prompt = fields.integer("input_length", 1)
    out = fields.integer("output_length")
    if prompt + out > MAX_TOKENS:
        raise fields.fail("output_length", f"makes a request of more than {MAX_TOKENS:,} tokens")
    ids = [fields.block_id("hash_ids", value) for value in fields.rows("hash_ids")]
    blocks = -(-prompt // BLOCK_TOKENS)
    if len(ids) != blocks:
        raise fields.fail(
            "hash_ids", f"has {len(ids)} ids, {prompt} tokens are {blocks} blocks of {BLOCK_TOKENS}"
        )
    turn = Turn(0, prompt, out, out, None, 0, tuple((block_id, 1) for block_id in ids))
    return Session(dataset, f"request-{index:06d}", (turn,), BLOCK_TOKENS, dataset, where=where)
