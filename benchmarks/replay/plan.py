"""How sessions are driven: when they arrive, how long their tools take, when to stop midway."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.replay.records import TurnRecord
from benchmarks.replay.schedule import Schedule
from benchmarks.replay.trace import Session
from dualpath_sglang.contract.errors import ConfigError

Midway = Callable[[int], Awaitable[None]]
"""Called once with t when every session has finished its first t turns (or has ended)."""


@dataclass(frozen=True)
class Gaps:
    """Pauses: recorded seconds times `factor` (0: none), at most `most_s`."""

    factor: float = 0.0
    most_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.most_s >= 0:
            raise ConfigError(f"max-gap must be at least 0 s, not {self.most_s}", field="max_gap")

    def scaled(self, recorded_s: float | None) -> float:
        """None (not recorded) is no pause."""
        return 0.0 if recorded_s is None else min(self.most_s, recorded_s * self.factor)


def parse_times(text: str, field: str) -> float:
    """`zero` (0), `recorded` (1), or a factor of at least 0. Raises ConfigError."""
    named = {"zero": 0.0, "recorded": 1.0}
    try:
        factor = named[text] if text in named else float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor >= 0):
        raise ConfigError(f"{field} must be zero, recorded or a factor, not {text!r}", field=field)
    return factor


@dataclass(frozen=True)
class Goodput:
    """Limits of a good turn, in milliseconds, and the part of all turns that has to be good for
    the whole to count as met (None: not asked)."""

    ttft_ms: float
    tpot_ms: float
    required: float | None = None

    def __post_init__(self) -> None:
        if self.required is not None and not 0 < self.required <= 1:
            raise ConfigError("attainment must be above 0 and at most 1", field="attainment")

    def good(self, turn: TurnRecord) -> bool:
        """A turn of a single token has no TPOT to exceed."""
        within = (turn.ttft_ms or 0.0) <= self.ttft_ms and (turn.tpot_ms or 0.0) <= self.tpot_ms
        return turn.error is None and within

    def met(self, good: int, turns: int) -> bool | None:
        return None if self.required is None else good >= self.required * turns


def parse_goodput(
    words: list[str], field: str = "goodput", required: float | None = None
) -> Goodput:
    """`["ttft:4000", "tpot:50"]` as SGLang's and AIPerf's benchmarks write it (ms)."""
    limits: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
    good = set(limits) == {"ttft", "tpot"} and all(value > 0 for value in limits.values())
    if not good:
        raise ConfigError(f"{field} must be ttft:MS tpot:MS, both above 0", field=field)
    return Goodput(limits["ttft"], limits["tpot"], required)


def poisson_arrivals(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Arrival times in seconds of a Poisson process: the same for the same arguments."""
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise ConfigError(f"rate must be above 0 sessions/s, not {rate_per_s!r}", field="rate")
    rng = random.Random(f"dualpath-replay/arrivals/{seed}")
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate_per_s)
        times.append(now)
    return times


def recorded_arrivals(
    sessions: Sequence[Session], schedule: Schedule, factor: float
) -> list[float | None]:
    """Recorded starts times `factor`; None for sessions that wait for another.

    Sessions without a parent count from the first of them, those of a parent from its first.
    Raises ConfigError where a start is not recorded.
    """
    first: dict[str | None, float] = {}
    starts: dict[int, float] = {}
    for index in schedule.roots:
        session = sessions[index]
        if session.start_s is None:
            raise ConfigError(
                f"{session.where or session.sid}: start_s is not recorded: use --rate",
                field="arrivals",
            )
        starts[index] = session.start_s
        first[session.parent] = min(session.start_s, first.get(session.parent, math.inf))
    return [
        (starts[index] - first[session.parent]) * factor if index in starts else None
        for index, session in enumerate(sessions)
    ]


def rate_arrivals(schedule: Schedule, rate_per_s: float, seed: int) -> list[float | None]:
    """A Poisson process of the sessions that wait for no other; None for the rest."""
    roots = schedule.roots
    times = dict(zip(roots, poisson_arrivals(len(roots), rate_per_s, seed), strict=True))
    return [times.get(index) for index in range(len(schedule.starts))]


@dataclass(frozen=True)
class DriverOptions:
    """How to drive sessions.

    arrivals_s: None: all sessions are there at once; in it None: a session that arrives when what
    it waits for has happened. rate_per_s: the rate that they were drawn for, if any.
    concurrency: most sessions that run at a time (None: no limit). settle_s: pause before a midway
    stop's action, because engines write finished turns to the store in the background, and a flush
    would drop what is queued. turn_timeout_s: the client gives a turn up after that.
    """

    url: str
    gaps: Gaps = field(default_factory=Gaps)
    arrivals_s: tuple[float | None, ...] | None = None
    concurrency: int | None = None
    midway_turns: tuple[int, ...] = ()
    settle_s: float = 0.0
    turn_timeout_s: float = 600.0
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url must be http://host:port, not {self.url!r}", field="url")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError("concurrency must be at least 1", field="concurrency")
        if any(turn < 1 for turn in self.midway_turns):
            raise ConfigError("flush-after-turn must be at least 1", field="flush_after_turn")
