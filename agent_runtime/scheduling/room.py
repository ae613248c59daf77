"""What one turn moves, and whether an engine has room for it now.

    P   what it reads and pulls has to fit its prefetch share              (`loadable`)
    D   what it stages has to fit its pin share: k is no larger than that  (`loadable`)
    D   prompt and output have to fit its free device pool                 (`free`)

A turn without room waits in the router, where no engine's deadline runs and a client that leaves
costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from agent_runtime.scheduling.view import TurnView


class Moves(NamedTuple):
    """Tokens that one pair moves for one turn: `reads` from the store, `pulls` by P from D."""

    prefill_reads: int
    decode_reads: int
    pulls: int
    computes: int


def moves(turn: TurnView, split: int | None, p: int, d: int) -> Moves:
    """`split` pages come from D, the rest from P; p, d: leading pages in their memories already."""
    n, page = turn.cached_pages, turn.page_size
    known = p if n is None or split is None else max(n, p)
    computes = max(1, turn.prompt_tokens - known * page)
    if n is None or split is None:
        return Moves(0, 0, 0, computes)
    return Moves(
        prefill_reads=max(0, n - max(split, p)) * page,
        decode_reads=max(0, split - d) * page,
        pulls=max(0, split - p) * page,
        computes=computes,
    )


def load_tokens(turn: TurnView) -> int:
    """What P has to load by plan when it holds nothing."""
    return (turn.cached_pages or 0) * turn.page_size


def kv_tokens(turn: TurnView) -> int:
    """What D has to have room for."""
    return turn.prompt_tokens + turn.output_tokens
