"""Sessions that start in mid-trajectory: a history that the store holds, then the measured turns.

The same counts in every run; the tokens of the histories are the same too, those appended in
measured turns belong to one run only. So a run never finds in the store what another has
appended, and the histories have to be written once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from benchmarks.replay.generator import generate
from benchmarks.replay.scale import scale
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, Turn
from benchmarks.rig.config import RigConfig
from dualpath_sglang.contract.errors import ConfigError

DATASET = "rig"
MOST_REJECTED = 2_000


@dataclass(frozen=True)
class RigSession:
    """`history` tokens that are in the store before the first of the measured `turns`."""

    sid: str
    history: int
    turns: tuple[Turn, ...]

    @property
    def longest(self) -> int:
        return self.turns[-1].context

    def prefill(self) -> Session:
        """One turn that brings the history into the store."""
        return Session(DATASET, self.sid, (Turn(0, self.history, 1, 1),))

    def measured(self) -> Session:
        """The turns as a new session of the router: its first turn sends the history too."""
        first = self.turns[0]
        opening = replace(first, keep=0, append=first.keep + first.append, gap_s=None)
        return Session(DATASET, self.sid, (opening, *self.turns[1:]))


@dataclass(frozen=True)
class RigWorkload:
    sessions: tuple[RigSession, ...]

    @property
    def working_set(self) -> int:
        """Tokens that caches would have to hold to make the store needless."""
        return sum(session.history for session in self.sessions)

    @property
    def digest(self) -> str:
        """Equal for equal turns in equal order."""
        rows = [(s.sid, s.history, [(t.keep, t.append, t.out) for t in s.turns]) for s in self]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[RigSession]:
        return iter(self.sessions)


def build(config: RigConfig) -> RigWorkload:
    """The first sessions of the paper's set that are long enough. Raises ConfigError."""
    scaled = (scale(s, config.scale) for s in generate(config.generate, config.seed))
    found = _mid_trajectories(islice(scaled, MOST_REJECTED), config)
    sessions = tuple(islice(found, config.sessions))
    if len(sessions) < config.sessions:
        raise ConfigError(
            f"only {len(sessions)} of {MOST_REJECTED} sessions reach {config.context} tokens with "
            f"{config.turns} turns to go: raise scale or lower context",
            field="context",
        )
    return RigWorkload(sessions)


def _mid_trajectories(sessions: Iterable[Session], config: RigConfig) -> Iterator[RigSession]:
    for session in sessions:
        long_enough = (i for i, t in enumerate(session.turns) if t.keep >= config.context)
        start = next(long_enough, None)
        if start is None:
            continue
        turns = session.turns[start : start + config.turns]
        if len(turns) == config.turns and turns[0].keep < 1.25 * config.context:
            yield RigSession(session.sid, turns[0].keep, turns)


class RigTokens(TokenSource):
    """Histories by session; what measured turns append by (run, session, turn)."""

    def __init__(self, space: TokenSpace, sessions: Iterable[RigSession], run: str) -> None:
        super().__init__(space)
        self._run = run
        self._history = {session.sid: session.history for session in sessions}

    def appended(self, session: Session) -> list[list[int]]:
        history = self._history[session.sid]
        opening, *rest = session.turns
        filled = [self.stream(("history", session.sid), history)]
        filled[0] += self._new(session.sid, 0, opening.append - history)
        return filled + [self._new(session.sid, i + 1, t.append) for i, t in enumerate(rest)]

    def _new(self, sid: str, turn: int, count: int) -> list[int]:
        return self.stream(("run", self._run, sid, turn), count)


def only_first_turn(sessions: Sequence[RigSession], index: int) -> RigSession:
    """The session at `index` (round and round) with its first turn only: one lone request."""
    session = sessions[index % len(sessions)]
    return replace(session, turns=session.turns[:1])
