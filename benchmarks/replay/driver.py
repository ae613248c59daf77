"""Drives sessions against the router and records every turn.

One task per session. Sessions of one user keep their recorded order, whatever the pauses. A failed
turn ends its session and is counted; nothing is retried and the other sessions go on. Every reply
is checked against what was asked for, and at its end each session's whole history is read back and
compared with the client's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from agent_runtime.client import AsyncDualPathClient
from benchmarks.replay.checks import check_history, check_reply
from benchmarks.replay.midway import Barriers
from benchmarks.replay.pace import Pace
from benchmarks.replay.plan import DriverOptions, Midway
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import (
    Failure,
    Observed,
    SessionRecord,
    TokenTimes,
    TurnRecord,
    TurnTokens,
)
from benchmarks.replay.router import CallFailed, Router
from benchmarks.replay.schedule import Schedule, plan
from benchmarks.replay.tokens import TokenSource
from benchmarks.replay.trace import Session, Turn
from benchmarks.replay.turns import filled, prompt_digest, turn_options

FORGET_TIMEOUT_S = 5.0
OnTurn = Callable[[TurnRecord], None]


async def replay(
    sessions: Sequence[Session],
    source: TokenSource,
    options: DriverOptions,
    progress: Progress,
    midway: Midway | None = None,
    on_turn: OnTurn | None = None,
) -> Observed:
    """Runs all sessions; the records come in the order of `sessions`.

    `midway` is awaited at each of `options.midway_turns`; None means that the router is asked to
    flush its engines' caches. If it raises, the other sessions are cancelled and MidwayFailed
    leaves this function. `on_turn` sees each record as its turn ends, in the order of time; what
    it raises ends the replay in the same way.
    """
    limit = options.turn_timeout_s
    async with AsyncDualPathClient(options.url, timeout=limit) as client:
        router, schedule = Router(client, limit), plan(sessions)
        run = _Run(router, source, options, progress, schedule, midway, on_turn)
        try:
            async with asyncio.TaskGroup() as tasks:
                for index, session in enumerate(sessions):
                    tasks.create_task(run.session(index, session))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
    return run.observed()


@dataclass
class _Log:
    """One session while it runs; `history` is the client's own copy of the context."""

    name: str
    history: list[int] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    tokens: list[TurnTokens] = field(default_factory=list)
    times: list[TokenTimes] = field(default_factory=list)
    record: SessionRecord | None = None


class _Run:
    def __init__(
        self,
        router: Router,
        source: TokenSource,
        options: DriverOptions,
        progress: Progress,
        schedule: Schedule,
        midway: Midway | None,
        on_turn: OnTurn | None,
    ) -> None:
        self._router = router
        self._source = source
        self._options = options
        self._progress = progress
        self._midway = midway or self._flush
        self._on_turn = on_turn
        count = len(schedule.starts)
        self._pace = Pace(schedule, options.gaps)
        self._barriers = Barriers(count, options.midway_turns, self._stop_midway)
        limit = options.concurrency
        self._slots = asyncio.Semaphore(limit) if limit is not None else None
        self._logs: list[_Log | None] = [None] * count
        self._seen = Observed()
        self._start = time.perf_counter()

    def observed(self) -> Observed:
        self._seen.wall_s = self._now()
        for log in self._logs:
            if log is not None and log.record is not None:
                self._seen.turns += log.turns
                self._seen.tokens += log.tokens
                self._seen.times += log.times
                self._seen.sessions.append(log.record)
        return self._seen

    def _now(self) -> float:
        return time.perf_counter() - self._start

    # -- sessions ------------------------------------------------------------------------------

    async def session(self, index: int, session: Session) -> None:
        await self._due(index)
        arrival = self._now()
        log = self._logs[index] = _Log(session.sid)
        async with self._slot():
            if self._options.arrivals_s is None:
                arrival = self._now()
            failure = await self._drive(index, session, log)
            end = self._now()
        log.record = SessionRecord(
            session=session.sid,
            dataset=session.dataset,
            planned_turns=len(session.turns),
            completed_turns=len(log.tokens),
            arrival_s=arrival,
            end_s=end,
            jct_s=None if failure else end - arrival,
            error=failure,
        )
        self._progress.session_ended(len(session.turns) - len(log.turns))
        self._pace.left(index)
        await self._barriers.leave(index)

    async def _due(self, index: int) -> None:
        """Returns when the session arrives: at its time, or after what it waits for."""
        waits = partial(self._pace.waits, index, 0)
        async with self._barriers.excused(index, waits):
            await self._pace.others(index, 0)
        arrivals = self._options.arrivals_s
        at = None if arrivals is None else arrivals[index]
        pause = self._pace.pause_s(index, 0, 0.0) if at is None else at - self._now()
        await asyncio.sleep(max(0.0, pause))

    async def _drive(self, index: int, session: Session, log: _Log) -> Failure | None:
        """All turns of one session; the failure that ended it, if any."""
        try:
            session_id = await self._create(session)
        except CallFailed as error:
            return error.failure
        try:
            await self._turns(index, session, session_id, log)
            check_history(await self._router.history(session_id), log.history)
        except CallFailed as error:
            return error.failure
        finally:
            await self._forget(session_id)
        return None

    async def _create(self, session: Session) -> str:
        """A session that was asked for is deleted also when the replay is interrupted before the
        router has said what it is called."""
        asked = asyncio.create_task(self._router.create(_metadata(session)))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            with contextlib.suppress(CallFailed, TimeoutError):
                async with asyncio.timeout(FORGET_TIMEOUT_S):
                    await self._forget(await asked)
            raise

    async def _turns(self, index: int, session: Session, session_id: str, log: _Log) -> None:
        appended = self._source.appended(session)
        started = self._now()
        for number, turn in enumerate(session.turns):
            gap = await self._pause(index, number, started) if number else 0.0
            self._pace.sent(index, number)
            await self._turn(session_id, number, turn, gap, appended[number], log)
            self._pace.ended(index, number)
            if self._barriers.stops_after(number + 1):
                async with self._slot_given_back():
                    await self._barriers.wait(index, number + 1)

    async def _pause(self, index: int, number: int, started_s: float) -> float:
        """Waits before a turn for other sessions and for its tool; seconds of the latter."""
        if self._pace.waits(index, number):
            waits = partial(self._pace.waits, index, number)
            async with self._slot_given_back(), self._barriers.excused(index, waits):
                await self._pace.others(index, number)
        gap = self._pace.pause_s(index, number, self._now() - started_s)
        if gap:
            await asyncio.sleep(gap)
        return gap

    async def _forget(self, session_id: str) -> None:
        """Also runs when the replay is interrupted, so it must not wait long."""
        try:
            async with asyncio.timeout(FORGET_TIMEOUT_S):
                await self._router.delete(session_id)
        except (CallFailed, TimeoutError) as error:
            self._seen.warnings.append(f"session {session_id} was not deleted: {error}")

    # -- turns ---------------------------------------------------------------------------------

    async def _turn(
        self, session_id: str, number: int, turn: Turn, gap: float, append: list[int], log: _Log
    ) -> None:
        """Sends one turn and records it. Raises CallFailed after recording a failure."""
        prompt = log.history[: turn.keep] + append
        record = TurnRecord(
            session=log.name,
            turn=number,
            keep=turn.keep,
            append=turn.append,
            out=turn.out,
            started_s=self._now(),
            gap_s=gap,
        )
        sent = turn_options(number, turn, prompt, len(log.history))
        try:
            streamed = await self._router.turn(session_id, sent)
            check_reply(streamed, number, len(prompt), turn.generated)
            done = filled(record, streamed)
        except CallFailed as error:
            passed = (self._now() - record.started_s) * 1e3
            self._note(log, replace(record, e2e_ms=passed, error=error.failure))
            raise
        digest = prompt_digest(prompt)
        output = streamed.token_ids
        log.tokens.append(
            TurnTokens(log.name, number, turn.keep, append, output, len(prompt), digest)
        )
        counted = streamed.times[: turn.out]
        log.times.append(TokenTimes(array("d", (at - self._start for at in counted))))
        log.history = prompt + output
        self._note(log, done)

    def _note(self, log: _Log, record: TurnRecord) -> None:
        log.turns.append(record)
        self._progress.turn_ended(record.ttft_ms if record.error is None else None)
        if self._on_turn is not None:
            self._on_turn(record)

    # -- midway and slots ----------------------------------------------------------------------

    async def _stop_midway(self, turn: int) -> None:
        began = self._now()
        await asyncio.sleep(self._options.settle_s)
        await self._midway(turn)
        self._seen.midway.append({"after_turn": turn, "at_s": began, "took_s": self._now() - began})

    async def _flush(self, turn: int) -> None:
        await self._router.flush()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots is None:
            yield
            return
        async with self._slots:
            yield

    @contextlib.asynccontextmanager
    async def _slot_given_back(self) -> AsyncIterator[None]:
        """Sessions that wait for others must not hold the slots that those others need."""
        if self._slots is None:
            yield
            return
        self._slots.release()
        try:
            yield
        finally:
            await self._slots.acquire()


def _metadata(session: Session) -> dict[str, str]:
    made = {"dataset": session.dataset, "trace_session": session.sid}
    return made if session.parent is None else made | {"trace_parent": session.parent}
