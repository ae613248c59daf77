"""How many placements one core makes in a second, as the router makes them.

    a pass                                        timed
    ├─ a report that is due, off the wire         yes: each engine's once a second
    ├─ views of the turns that come               yes
    ├─ view, policy, decisions applied            yes
    ├─ turns that get their first token and end   yes
    └─ the engines' own books                     no

Times are of this thread on its core: other work on the machine does not count.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.passes import advance
from agent_runtime.scheduling.placement import Decision, Placed, Policy, Waiting, ranks_of
from agent_runtime.scheduling.profile import DEFAULT_PROFILE
from agent_runtime.scheduling.view import START, TurnView
from benchmarks.scheduler.engines import KV_BYTES, Engines
from benchmarks.scheduler.load import Sessions
from dualpath_sglang.contract.engine_report import decode_report
from dualpath_sglang.contract.ids import RequestId

MOST_WAITING = 32
PART_WAITING = 0.05
"""Of the turns in a pass those that find no room."""
PART_BUSY = 0.6
"""Of the sessions those that have a turn on the engines, where these can take it: at most half of
what they may be given."""


@dataclass(frozen=True)
class Setup:
    """prefill, decode: engines. context: of every session in tokens; null: mixed. waiting: turns
    in a pass; null: 1 to `MOST_WAITING`."""

    prefill: int
    decode: int
    sessions: int = 10_000
    context: int | None = None
    waiting: int | None = None


@dataclass(frozen=True)
class Run:
    """us: of one placement, for each pass. waited: part of all decisions. reports: applied."""

    placements_per_s: float
    us: list[float]
    waited: float
    reports: int


class _Timer:
    """seconds: of this thread, within `with timer.on()`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds += time.thread_time() - start


class Placements:
    """A queue before a fleet, driven as fast as it goes."""

    def __init__(self, setup: Setup, policy: Policy, seed: int) -> None:
        self._setup, self._policy = setup, policy
        self._rng = rng = random.Random(seed)
        self._engines = Engines(setup.prefill, setup.decode, rng)
        self._sessions = Sessions(setup.sessions, setup.context, rng)
        self.fleet = Fleet([engine.facts() for engine in self._engines.all])
        for engine in self._engines.all:
            self.fleet.set_plans(engine.rank, True, KV_BYTES)
            self.fleet.set_namespace(engine.rank, "model")
            self.fleet.set_up(engine.rank, True)
            self.fleet.report(engine.rank, decode_report(engine.report()), 0.0)
        self._cursor = START
        self._waiting: dict[RequestId, TurnView] = {}
        self._large: set[RequestId] = set()
        self._running: deque[Placed] = deque()
        self._timer = _Timer()
        self._reports = 0

    def run(self, placements: int) -> Run:
        """What is done until the sessions are busy does not count."""
        count = self._setup.sessions
        mean = sum(session.context for session in self._sessions.idle) / count
        most = DEFAULT_PROFILE.beta_tokens / 2 * self._setup.prefill / mean
        busy = round(min(PART_BUSY * count, most))
        while len(self._running) < busy:
            self._pass(busy)
        self._timer.seconds, self._reports = 0.0, 0
        placed = waited = 0
        us: list[float] = []
        while placed < placements:
            before = self._timer.seconds
            made, left = self._pass(busy)
            us.append((self._timer.seconds - before) / max(1, made) * 1e6)
            placed, waited = placed + made, waited + left
        rate = placed / self._timer.seconds
        return Run(rate, us, waited / (placed + waited), self._reports)

    def _pass(self, busy: int) -> tuple[int, int]:
        """How many turns were placed, and how many have to wait."""
        fetching = self._report_if_due()
        now = self._timer.seconds
        size = self._setup.waiting or self._rng.randint(1, MOST_WAITING)
        self._set_large(sum(self._rng.random() < PART_WAITING for _ in range(size)), now)
        with self._timer.on():
            for _ in range(min(size - len(self._waiting), len(self._sessions.idle))):
                turn = self._sessions.turn(now)
                self._waiting[turn.id] = turn
            view = self.fleet.view(
                max_inflight=10**6, cursor=self._cursor, split_policy="auto", fetching=fetching
            )
            turns = list(self._waiting.values())
            placed, waits = self._apply(self._policy(view, turns, now, self._rng))
        for one, turn in placed:
            self._engines.take(one, turn)
            self._sessions.placed(one)
            self._running.append(one)
        self._end(len(self._running) - busy)
        return len(placed), waits

    def _apply(self, decisions: Sequence[Decision]) -> tuple[list[tuple[Placed, TurnView]], int]:
        """As the router's placement loop does it."""
        placed: list[tuple[Placed, TurnView]] = []
        waits = 0
        for decision in decisions:
            turn = self._waiting[decision.id]
            if isinstance(decision, Placed):
                del self._waiting[decision.id]
                self._cursor = advance(self._cursor, decision)
                self.fleet.place(decision, turn)
                placed.append((decision, turn))
            elif isinstance(decision, Waiting):
                waits += 1
                if (turn.group, turn.overtaken) != (decision.group, decision.overtaken):
                    self._waiting[turn.id] = replace(
                        turn, group=decision.group, overtaken=decision.overtaken
                    )
        return placed, waits

    def _set_large(self, count: int, now: float) -> None:
        """So many turns without room wait in front of all others."""
        while len(self._large) > count:
            del self._waiting[self._large.pop()]
        while len(self._large) < count:
            turn = self._sessions.too_large(now)
            self._waiting = {turn.id: turn, **self._waiting}
            self._large.add(turn.id)

    def _report_if_due(self) -> int | None:
        """Each engine's once a second, evenly spread; the group of the one that came."""
        every = self._engines.all
        if self._reports >= self._timer.seconds * len(every):
            return None
        engine = every[self._reports % len(every)]
        self._reports += 1
        data = engine.report()
        with self._timer.on():
            return self.fleet.report(engine.rank, decode_report(data), self._timer.seconds)

    def _end(self, count: int) -> None:
        """The oldest turns get their first token and end."""
        over = [self._running.popleft() for _ in range(max(0, count))]
        with self._timer.on():
            for placed in over:
                self.fleet.loaded(placed.id)
                self.fleet.end(placed.id, clean=True)
        for placed in over:
            for rank in ranks_of(placed):
                self._engines.finish(rank, placed.id)
            self._sessions.ended(placed.id)


def argmin_us(setup: Setup, repeat: int = 20_000) -> float:
    """A bare argmin of tok_e over the prefill and over the decode engines, in microseconds."""
    view = Placements(setup, lambda *_: [], 0).fleet.view(max_inflight=1)
    start = time.thread_time()
    for _ in range(repeat):
        view.prefill.tok.argmin()
        view.decode.tok.argmin()
    return (time.thread_time() - start) / repeat * 1e6
