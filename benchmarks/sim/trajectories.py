"""Sessions as flat lists of counts: no tokens, no hashes.

A turn is (hit, new, out, gap): tokens in full pages that the store holds once the session's turn
before has ended, tokens to compute, tokens to generate, seconds before it. Agents that replay the
same session share its lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.replay.trace import Session, Turn

SYNTHETIC_TOKENS = 64
"""Appended by the first round that makes a copy of a trajectory share nothing (paper, A.3)."""


@dataclass
class Trajectories:
    """`first[t]` and `end[t]` bound trajectory t's turns in the flat lists."""

    page: int
    first: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    hit: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    out: list[int] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)

    def add(self, session: Session) -> None:
        self.first.append(len(self.hit))
        stored = 0
        for turn in session.turns:
            hit = min(turn.keep, stored, turn.prompt - 1) // self.page * self.page
            self.hit.append(hit)
            self.new.append(turn.prompt - hit)
            self.out.append(max(1, turn.out))
            self.gap.append(turn.gap_s or 0.0)
            stored = turn.prompt + turn.out
        self.end.append(len(self.hit))

    def __len__(self) -> int:
        return len(self.first)

    def turns(self, agents: Iterable[int]) -> int:
        return sum(self.end[t] - self.first[t] for t in agents)


def from_sessions(sessions: Iterable[Session], page: int) -> Trajectories:
    made = Trajectories(page)
    for session in sessions:
        made.add(session)
    return made


def with_copies(
    sessions: Sequence[Session], agents: int, page: int
) -> tuple[Trajectories, list[int]]:
    """Trajectories and which of them each of `agents` agents replays.

    The first agents replay the sessions themselves, the others copies that start with a round of
    random tokens, so that nothing is shared.
    """
    made = from_sessions(sessions, page)
    if agents > len(sessions):
        for session in sessions:
            made.add(_prepended(session))
    base = len(sessions)
    plan = [a if a < base else base + a % base for a in range(agents)]
    return made, plan


def _prepended(session: Session) -> Session:
    before = SYNTHETIC_TOKENS + 1
    head = Turn(0, SYNTHETIC_TOKENS, 1, 1)
    first, *rest = session.turns
    turns = [head, replace(first, keep=before)]
    turns += [replace(turn, keep=turn.keep + before) for turn in rest]
    return replace(session, sid=f"{session.sid}/copy", turns=tuple(turns))
