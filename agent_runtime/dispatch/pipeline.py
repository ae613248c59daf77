"""The journey of one turn, in order:

    known key? ─▶ claim the session ─▶ check ─▶ render ─▶ place ─▶ run ─▶ commit ─▶ release

Until `commit` the session is as before. A turn that ends early after its first tokens is committed
as `partial` if it asked for `keep_partial`; any other leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace

from agent_runtime.dispatch.counts import TurnCounts
from agent_runtime.dispatch.engines import Engines, Meta
from agent_runtime.dispatch.events import Done, Failed, Started, Tokens, TurnEvents
from agent_runtime.dispatch.limits import Limits
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.dispatch.output import Finish, Output
from agent_runtime.dispatch.render import Rendered, decode_output, render
from agent_runtime.dispatch.sampling import Checked
from agent_runtime.dispatch.text import Detokenizer
from agent_runtime.dispatch.turn import Job, Progress
from agent_runtime.planning.planner import Planner
from agent_runtime.scheduling.placement import Placed
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
OUTPUT_RESERVE = 512
"""KV tokens that a decode engine keeps free for what a turn generates, at most (SGLang's
`num_reserved_decode_tokens`)."""


@dataclass
class _Turn:
    """One turn under way; each step fills in its field."""

    id: RequestId
    session: Session
    request: TurnRequest
    events: TurnEvents
    progress: Progress
    rendered: Rendered | None = None
    meta: Meta = field(default_factory=dict)


class Pipeline:
    def __init__(
        self,
        sessions: Sessions,
        renderer: Renderer,
        loop: PlacementLoop,
        engines: Engines,
        limits: Limits,
        planner: Planner,
        detokenizer: Detokenizer | None,
        counts: TurnCounts,
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
        self._detokenizer = detokenizer
        self._counts = counts
        self._clock = clock
        self._default_deadline_s = default_deadline_s
        self._commits: set[asyncio.Task[TurnRecord]] = set()

    def start(self, request_id: RequestId, session: Session, request: TurnRequest) -> TurnEvents:
        """The turn, under way. Its last event is Done, or Failed with what went wrong."""
        events = TurnEvents()
        events.run(self._counted(self._run(request_id, session, request, events)))
        return events

    async def _counted(self, turn: Awaitable[Done]) -> Done:
        last: Done | Failed | None = None
        try:
            last = done = await turn
        except Exception as error:
            last = Failed(error)
            raise
        finally:
            self._counts.count(last)
        return done

    async def _run(
        self, request_id: RequestId, session: Session, request: TurnRequest, events: TurnEvents
    ) -> Done:
        while True:
            turns = session.turns
            earlier = await self._earlier(session, request)
            if earlier is not None:
                return await _tell_again(earlier, events)
            if turns == session.turns:  # else a turn with the same key may have ended meanwhile
                break
        session.claim()
        turn = _Turn(request_id, session, request, events, Progress(request_id, self._clock.now()))
        try:
            return Done(await self._claimed(turn), replayed=False, meta=turn.meta)
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

    async def _claimed(self, turn: _Turn) -> TurnRecord:
        _check_turn(turn.session, turn.request)
        seconds = turn.request.deadline_s or self._default_deadline_s
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                await self._generate(turn)
        except (DualPathError, TimeoutError, asyncio.CancelledError) as error:
            await self._keep_partial(turn)
            if isinstance(error, TimeoutError) and scope.expired():
                raise self._late(turn, seconds) from error
            raise
        return await self._commit(turn)

    async def _generate(self, turn: _Turn) -> None:
        sampling = self._limits.sampling(turn.request)
        turn.rendered = rendered = await render(turn.session, turn.request, self._renderer)
        prompt = turn.session.tokens[: rendered.kept] + rendered.input
        limit = self._limits.max_new_tokens(prompt, rendered.input, sampling.max_new_tokens)
        turn.progress.reading = self._reading(prompt, sampling)
        cached = await self._planner.look_up(turn.session, rendered.kept, prompt)
        past = self._loop.past.of(turn.session.head.name, rendered.kept, cached.page_size)
        view = TurnView(
            turn.id,
            len(prompt),
            len(rendered.input),
            turn.progress.arrived,
            cached_pages=cached.pages,
            page_size=cached.page_size,
            no_plan=cached.why,
            namespace=cached.namespace,
            output_tokens=min(limit, OUTPUT_RESERVE),
            held=past.held,
            prefill=past.prefill,
            decode=past.decode,
        )
        placed = await self._loop.place(view)
        plan = self._planner.plan(placed, cached)
        turn.progress.placed, turn.progress.placed_at = placed, self._clock.now()
        await turn.events.put(Started(turn.session.turns, len(prompt), _recorded(placed)))
        hints = None if plan is None else to_kv_hints(plan)
        job = Job(turn.id, prompt, sampling.engine | {"max_new_tokens": limit}, hints)
        turn.meta = await self._engines.run(placed, job, turn.progress, turn.events)

    def _reading(self, prompt: array[int], sampling: Checked) -> Output:
        text = None
        if self._detokenizer is not None:
            skip = sampling.skip_special_tokens
            text = self._detokenizer.output(prompt, skip_special_tokens=skip)
        return Output(text, sampling.stops)

    async def _keep_partial(self, turn: _Turn) -> None:
        """The input and the tokens that were sent; a client that got none can send it all again."""
        wanted = turn.request.keep_partial and not turn.session.deleted
        if not wanted or not turn.progress.output:
            return
        if turn.progress.reading is not None:
            turn.progress.texts.append(turn.progress.reading.rest())
        turn.progress.finish = Finish("partial")
        await self._commit(turn)

    async def _commit(self, turn: _Turn) -> TurnRecord:
        """Not torn by a cancellation: the turn is stored whole and then joins the history."""
        # The engines are done with it, whatever the disk takes.
        self._loop.release(turn.id, clean=turn.progress.ended_at is not None)
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
        assert turn.progress.placed is not None
        self._loop.past.ended(
            turn.session.head.name,
            turn.progress.placed,
            record.kept,
            record.prompt_tokens,
            len(record.output),
        )
        return record

    def _record(self, turn: _Turn) -> TurnRecord:
        rendered, progress, placed = turn.rendered, turn.progress, turn.progress.placed
        assert rendered is not None
        assert placed is not None
        finish = progress.finish or Finish("")
        prompt_tokens = rendered.kept + len(rendered.input)
        nothing = Usage(prompt_tokens, len(progress.output), 0, Tiers(), None)
        return TurnRecord(
            turn=turn.session.turns,
            kept=rendered.kept,
            input=rendered.input,
            output=progress.output,
            text=progress.text,
            finish_reason=finish.type,
            matched=finish.matched,
            usage=progress.usage or nothing,
            placement=_recorded(placed),
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


async def _tell_again(record: TurnRecord, events: TurnEvents) -> Done:
    """The events of a turn that is over, so that a client need not tell it from a new one."""
    await events.put(Started(record.turn, record.prompt_tokens, None))
    if record.output:
        await events.put(Tokens(record.output.tolist(), record.text, {}))
    return Done(record, replayed=True, meta={})


def _recorded(placed: Placed) -> PlacementRecord:
    return PlacementRecord(placed.prefill, placed.decode, placed.split, placed.reason, placed.pages)


def _check_turn(session: Session, request: TurnRequest) -> None:
    if request.if_turn is not None and request.if_turn != session.turns:
        raise Conflict(
            f"if_turn is {request.if_turn}, the session's next turn is {session.turns}: "
            "another writer was here, read the session again",
            field="if_turn",
        )
