"""Where the content of an append comes from, when a trace names it by ids of blocks.

A block of `block` recorded tokens covers, in a session scaled by `factor`, the positions from
round(i * block * factor) to round((i + 1) * block * factor), counted from the start of the first
id. Rounding each edge by itself, not the block's size, keeps equal ids at equal positions at
every scale. Where blocks become shorter than a token, one token stands for several: it is named
by all of their ids, so that it differs as soon as one of them does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.replay.trace import Turn


@dataclass(frozen=True)
class Piece:
    """`count` tokens of an append, from `at` on: what `ids` name, from its token `skip` on."""

    ids: tuple[int, ...]
    at: int
    skip: int
    count: int


def pieces(turn: Turn, ids: Sequence[int], block: int, factor: float) -> Iterator[Piece]:
    """The parts of the turn's append that lie in blocks with an id, in order, not overlapping.

    `ids` are those of the turn, from the one that starts `turn.hash_at` recorded tokens before
    the append; `block` is in recorded tokens, `turn.append` is scaled.
    """
    group: list[int] = []
    for index in range(turn.hash_at // block, len(ids)):
        group.append(ids[index])
        start = round((index * block - turn.hash_at) * factor)
        stop = round(((index + 1) * block - turn.hash_at) * factor)
        if start >= turn.append:
            return
        if stop > max(start, 0):
            at = max(start, 0)
            yield Piece(tuple(group), at, at - start, min(stop, turn.append) - at)
        if stop > start:
            group = []
