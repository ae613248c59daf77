"""A placed turn on its engines: both halves at once, and what happens when one of them fails.

    P ── prefill ── transfer ──▶ last event (usage)
    D ───────────────────────▶ tokens ... ──▶ last event (finish reason)

The turn is done when both have ended well. When one fails, or the turn is cancelled, the other is
aborted: its connection is closed and its engine told, since SGLang notices a closed connection
only after a while and an abort only once it knows the request.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from agent_runtime.dispatch.bodies import generate_body, pairing_with
from agent_runtime.dispatch.engine_client import Chunk, EngineClient, EngineUnreachable
from agent_runtime.dispatch.events import Tokens, TurnEvents
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.dispatch.turn import Job, Progress
from agent_runtime.dispatch.usage import usage_of, with_input_logprobs
from agent_runtime.scheduling.placement import Placed
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.ids import EngineId, RequestId
from dualpath_sglang.contract.report import META_KEY

Meta = dict[str, Any]


class Engines:
    def __init__(
        self,
        clients: Mapping[EngineId, EngineClient],
        loop: PlacementLoop,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.clients = clients
        self._loop = loop
        self._clock = clock
        self._rng = rng
        self._aborts: set[asyncio.Task[None]] = set()
        self._live: defaultdict[EngineId, set[asyncio.Timeout]] = defaultdict(set)
        self._dropped: dict[EngineId, str] = {}

    async def run(self, placed: Placed, job: Job, progress: Progress, events: TurnEvents) -> Meta:
        """Fills `progress` until the turn is done; returns the decode engine's last `meta_info`.

        Raises EngineFailure, BadRequest.
        """
        prefill = self.clients[placed.prefill]
        if placed.prefill == placed.decode:
            body = generate_body(job, None)
            halves = {placed.decode: self._decode(prefill, body, progress, events)}
        else:
            body = generate_body(job, pairing_with(prefill.endpoint, self._rng))
            decode = self.clients[placed.decode]
            halves = {
                placed.prefill: self._prefill(prefill, body),
                placed.decode: self._decode(decode, body, progress, events),
            }
        metas = await self._both(job.id, halves)
        progress.ended_at = self._clock.now()
        progress.usage = usage_of(
            metas[placed.prefill], metas[placed.decode], len(job.prompt), len(progress.output)
        )
        if placed.prefill != placed.decode:
            return with_input_logprobs(metas[placed.decode], metas[placed.prefill])
        return metas[placed.decode]

    def drop(self, name: EngineId, reason: str) -> None:
        """End all turns on an engine that stands still: its connections would stay open."""
        self._dropped[name] = reason
        for scope in self._live.pop(name, set()):
            scope.reschedule(0)

    async def close(self) -> None:
        """Waits until every abort has been told."""
        await asyncio.gather(*self._aborts, return_exceptions=True)

    async def _both(
        self, request_id: RequestId, halves: Mapping[EngineId, Coroutine[Any, Any, Meta]]
    ) -> dict[EngineId, Meta]:
        """The last `meta_info` of each half; the first failure ends the others."""
        tasks = {
            name: asyncio.create_task(self._unless_dropped(name, half))
            for name, half in halves.items()
        }
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            return {name: task.result() for name, task in tasks.items() if task.done()}
        finally:
            for name, task in tasks.items():
                if not task.done() or _failure(task) is not None:
                    self._abort(name, request_id)
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _unless_dropped(self, name: EngineId, half: Coroutine[Any, Any, Meta]) -> Meta:
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._live[name].add(scope)
                return await half
        except TimeoutError as error:
            raise EngineFailure(self._dropped.get(name, f"{name}: no answer")) from error
        finally:
            self._live[name].discard(scope)

    async def _prefill(self, client: EngineClient, body: bytes) -> Meta:
        meta: Meta = {}
        try:
            async with aclosing(client.generate(body)) as chunks:
                async for chunk in chunks:
                    meta = _latest(meta, chunk.meta)
        except EngineUnreachable as error:
            await self._lost(client, error)
            raise
        return meta

    async def _decode(
        self, client: EngineClient, body: bytes, progress: Progress, events: TurnEvents
    ) -> Meta:
        meta: Meta = {}
        try:
            async with aclosing(client.generate(body)) as chunks:
                async for chunk in chunks:
                    await self._take(chunk, progress, events)
                    meta = _latest(meta, chunk.meta)
                    if progress.finish is not None and chunk.finish_reason is None:
                        self._abort(EngineId(client.endpoint.name), progress.id)
                        break
        except EngineUnreachable as error:
            await self._lost(client, error)
            raise
        return meta

    async def _take(self, chunk: Chunk, progress: Progress, events: TurnEvents) -> None:
        if chunk.token_ids and progress.first_token_at is None:
            progress.first_token_at = self._clock.now()
            if progress.placed is not None:
                self._loop.loaded(progress.placed.id)
        assert progress.reading is not None
        token_ids, text = progress.reading.take(chunk)
        if token_ids or text:
            await events.put(Tokens(token_ids, text, chunk.meta))
            progress.output.extend(token_ids)
            progress.texts.append(text)
        progress.finish = progress.reading.finish

    async def _lost(self, client: EngineClient, error: EngineUnreachable) -> None:
        """An engine that broke one connection and still listens does not leave the fleet for it."""
        if await client.is_gone():
            self._loop.report_health(EngineId(client.endpoint.name), False, error.message)

    def _abort(self, name: EngineId, request_id: RequestId) -> None:
        task = asyncio.create_task(self.clients[name].abort(request_id))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


def _latest(before: Meta, meta: Meta) -> Meta:
    """The newer `meta_info`; the plugin's report comes once, with the first token."""
    if META_KEY in before and not meta.get(META_KEY):
        return {**meta, META_KEY: before[META_KEY]}
    return meta


def _failure(task: asyncio.Task[Meta]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
