"""The journey of one turn, in order:

    known key? ─▶ claim the session ─▶ render ─▶ check ─▶ place ─▶ run ─▶ commit ─▶ release

Until `commit` the session is as before. A turn that ends early after its first tokens is committed
as `partial` if it asked for `keep_partial`; any other leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from agent_runtime.dispatch.engines import Engines
from agent_runtime.dispatch.limits import Limits
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.dispatch.render import Rendered, decode_output, render
from agent_runtime.dispatch.turn import Job, Progress, Sink
from agent_runtime.planning.planner import Planner
from agent_runtime.scheduling.view import TurnView
from agent_runtime.trajectory.model import PlacementRecord, Tiers, TurnRecord, TurnRequest, Usage
from agent_runtime.trajectory.renderer import Renderer
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.sessions import Sessions
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.errors import (
    Conflict,
    DeadlineExceeded,
    DualPathError,
)
from dualpath_sglang.contract.ids import RequestId
from dualpath_sglang.contract.plan import to_kv_hints

DECODE_OUTPUT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Finished:
    """`replayed`: an earlier turn with the same idempotency key; nothing was generated now."""

    record: TurnRecord
    replayed: bool


@dataclass
class _Turn:
    """One turn under way; each step fills in its field."""

    id: RequestId
    session: Session
    request: TurnRequest
    progress: Progress
    rendered: Rendered | None = None


class Pipeline:
    def __init__(
        self,
        sessions: Sessions,
        renderer: Renderer,
        loop: PlacementLoop,
        engines: Engines,
        limits: Limits,
        planner: Planner,
        *,
        clock: Clock,
        default_deadline_s: float,
    ) -> None:
        self._sessions = sessions
        self._renderer = renderer
        self._loop = loop
        self._engines = engines
        self._limits = limits
        self._planner = planner
        self._clock = clock
        self._default_deadline_s = default_deadline_s
        self._commits: set[asyncio.Task[TurnRecord]] = set()

    async def run(
        self, request_id: RequestId, session: Session, request: TurnRequest, sink: Sink
    ) -> Finished:
        """Raises a DualPathError; cancelling it aborts the turn on its engines."""
        while True:
            turns = session.turns
            earlier = await self._earlier(session, request)
            if earlier is not None:
                return Finished(earlier, replayed=True)
            if turns == session.turns:  # else a turn with the same key may have ended meanwhile
                break
        session.claim()
        turn = _Turn(request_id, session, request, Progress(self._clock.now()))
        try:
            return Finished(await self._claimed(turn, sink), replayed=False)
        except asyncio.CancelledError:
            if (gone := session.gone()) is not None:
                raise gone from None
            raise
        finally:
            self._loop.release(request_id)
            session.release()

    async def _earlier(self, session: Session, request: TurnRequest) -> TurnRecord | None:
        if request.idempotency_key is None:
            return None
        record = await self._sessions.find(session, request.idempotency_key)
        if record is not None and record.digest != request.digest:
            raise Conflict(
                f"Idempotency-Key {request.idempotency_key!r} was used for turn {record.turn} "
                "with another body: use a new key",
                field="Idempotency-Key",
            )
        return record

    async def _claimed(self, turn: _Turn, sink: Sink) -> TurnRecord:
        _check_turn(turn.session, turn.request)
        seconds = turn.request.deadline_s or self._default_deadline_s
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                await self._generate(turn, sink)
        except (DualPathError, TimeoutError, asyncio.CancelledError) as error:
            await self._keep_partial(turn)
            if isinstance(error, TimeoutError) and scope.expired():
                raise self._late(turn, seconds) from error
            raise
        return await self._commit(turn)

    async def _generate(self, turn: _Turn, sink: Sink) -> None:
        turn.rendered = rendered = await render(turn.session, turn.request, self._renderer)
        prompt = turn.session.tokens[: rendered.kept] + rendered.input
        limit = self._limits.max_new_tokens(prompt, rendered.input, turn.request)
        sampling = dict(turn.request.sampling) | {"max_new_tokens": limit}
        cached = await self._planner.look_up(turn.session, rendered.kept, prompt)
        view = TurnView(
            turn.id,
            len(prompt),
            len(rendered.input),
            turn.progress.arrived,
            cached_pages=cached.pages,
            page_size=cached.page_size,
            no_plan=cached.why,
        )
        placed = await self._loop.place(view)
        plan = self._planner.plan(placed, cached)
        turn.progress.placed, turn.progress.placed_at = placed, self._clock.now()
        await sink.started(placed, turn.session.turns, len(prompt))
        hints = None if plan is None else to_kv_hints(plan)
        job = Job(turn.id, prompt, sampling, hints)
        await self._engines.run(placed, job, turn.progress, sink)

    async def _keep_partial(self, turn: _Turn) -> None:
        """The input and the tokens that were sent; a client that got none can send it all again."""
        wanted = turn.request.keep_partial and not turn.session.deleted
        if not wanted or not turn.progress.output:
            return
        turn.progress.finish_reason = "partial"
        await self._commit(turn)

    async def _commit(self, turn: _Turn) -> TurnRecord:
        """Not torn by a cancellation: the turn is stored whole and then joins the history."""
        # The engines are done with it, whatever the disk takes.
        self._loop.release(turn.id)
        task = asyncio.create_task(self._store(turn))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            raise

    async def _store(self, turn: _Turn) -> TurnRecord:
        record = self._record(turn)
        if record.chat is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DECODE_OUTPUT_TIMEOUT_S):
                    chat = await decode_output(record.chat, record.output, self._renderer)
                    record = replace(record, chat=chat)
        await self._sessions.commit(turn.session, record)
        return record

    def _record(self, turn: _Turn) -> TurnRecord:
        rendered, progress, placed = turn.rendered, turn.progress, turn.progress.placed
        assert rendered is not None
        assert placed is not None
        prompt_tokens = rendered.kept + len(rendered.input)
        nothing = Usage(prompt_tokens, len(progress.output), 0, Tiers(), None)
        return TurnRecord(
            turn=turn.session.turns,
            kept=rendered.kept,
            input=rendered.input,
            output=progress.output,
            text=progress.text,
            finish_reason=progress.finish_reason,
            usage=progress.usage or nothing,
            placement=PlacementRecord(
                placed.prefill, placed.decode, placed.split, placed.reason, placed.pages
            ),
            timing=progress.timing(self._clock.now()),
            chat=rendered.chat,
            idempotency_key=turn.request.idempotency_key,
            digest=turn.request.digest,
        )

    def _late(self, turn: _Turn, seconds: float) -> DeadlineExceeded:
        placed = turn.progress.placed
        where = "while it waited for a placement"
        if placed is not None:
            where = (
                f"after {len(turn.progress.output)} tokens on prefill engine {placed.prefill!r} "
                f"and decode engine {placed.decode!r}"
            )
        elif turn.rendered is None:
            where = "while the renderer made its tokens"
        return DeadlineExceeded(f"the turn did not end within {seconds:g} s: {where}")


def _check_turn(session: Session, request: TurnRequest) -> None:
    if request.if_turn is not None and request.if_turn != session.turns:
        raise Conflict(
            f"if_turn is {request.if_turn}, the session's next turn is {session.turns}: "
            "another writer was here, read the session again",
            field="if_turn",
        )
