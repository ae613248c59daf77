"""Token counts times a factor, and the filters that choose sessions and turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from benchmarks.replay.trace import MAX_TOKENS, Session, TraceError, Turn
from dualpath_sglang.contract.errors import ConfigError

MAX_REJECTED_IN_A_ROW = 2_000
Sized = Callable[[Session, float], Session]
"""A session and a factor to the session in that size."""


def scale(session: Session, factor: float) -> Session:
    """Sizes times `factor`, by the rules of `traj/1`.

    append and out become max(1, round(x * factor)), or stay 0. keep stays "the whole context"
    where it was; where the client rewrote its context it becomes round(keep * factor), at most
    the context. The same goes for out_kept against out. `round` is Python's (halves to even).
    Blocks keep their recorded size: what they name is found by the session's factor (`blocks`).
    """
    check_factor(factor)
    turns: list[Turn] = []
    recorded_context = context = 0
    for index, turn in enumerate(session.turns):
        whole = turn.keep == recorded_context
        keep = context if whole else round(min(context, turn.keep * factor))
        check_size(session, index, keep + (turn.append + turn.out) * factor, factor)
        append = scaled(turn.append, factor)
        out, out_kept = scaled_output(turn, factor)
        # A prompt of context alone must not round to nothing.
        keep = keep if append else max(1, keep)
        turns.append(replace(turn, keep=keep, append=append, out=out, out_kept=out_kept))
        recorded_context, context = turn.context, turns[-1].context
    return replace(session, turns=tuple(turns), factor=session.factor * factor)


def check_factor(factor: float) -> None:
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"scale must be a number above 0, not {factor!r}", field="scale")


def scaled(tokens: int, factor: float) -> int:
    return max(1, round(tokens * factor)) if tokens else 0


def scaled_output(turn: Turn, factor: float) -> tuple[int, int]:
    """(out, out_kept): what was kept whole stays whole."""
    out = scaled(turn.out, factor)
    kept_whole = turn.out_kept == turn.out
    return out, out if kept_whole else min(out, round(turn.out_kept * factor))


def check_size(session: Session, index: int, tokens: float, factor: float) -> None:
    """Before any rounding, which a product beyond all numbers would not survive."""
    if tokens > MAX_TOKENS:
        raise TraceError(
            f"{session.where or session.sid}: turns[{index}]: scaled by {factor:g} it has more "
            f"than {MAX_TOKENS:,} tokens",
            field="scale",
        )


@dataclass(frozen=True)
class Filters:
    """What to take of the (scaled) sessions; None means no limit.

    `max_context` is the most prompt plus output tokens of a turn: a session is cut before the
    first turn that exceeds it. `turns` keeps the first so many. Sessions left with fewer than
    `min_turns` are dropped; the first `sessions` of the rest are taken.
    """

    sessions: int | None = None
    turns: int | None = None
    min_turns: int = 1
    max_context: int | None = None

    def __post_init__(self) -> None:
        for name in ("sessions", "turns", "min_turns", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", field=name)


def cut(session: Session, filters: Filters) -> Session | None:
    """The session's first turns that pass, or None when too few are left."""
    turns = list(session.turns[: filters.turns])
    if filters.max_context is not None:
        fits = [turn.prompt + turn.generated <= filters.max_context for turn in turns]
        turns = turns[: fits.index(False)] if False in fits else turns
    if len(turns) < filters.min_turns:
        return None
    return replace(session, turns=tuple(turns))


def select(
    sessions: Iterable[Session], factor: float, filters: Filters, sized: Sized = scale
) -> Iterator[Session]:
    """Filtered sessions with their sizes times `factor`, lazily: an endless source is fine.

    Raises TraceError when nothing passes (or nothing for a very long time).
    """
    taken = rejected = 0
    for session in sessions:
        kept = cut(sized(session, factor), filters)
        if kept is None:
            rejected += 1
            if rejected > MAX_REJECTED_IN_A_ROW:
                break
            continue
        rejected = 0
        taken += 1
        yield kept
        if taken == filters.sessions:
            return
    if taken == 0:
        raise TraceError(
            "no session passes: relax --min-turns or --max-context, or lower --scale",
            field="sessions",
        )
