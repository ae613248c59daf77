"""Asks every engine all the time whether it serves; the answers go to the placement loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from agent_runtime.config import RouterConfig
from agent_runtime.dispatch.engine_client import EngineClient, EngineUnreachable
from agent_runtime.dispatch.loop import PlacementLoop
from dualpath_sglang.contract.engine_info import from_server_info
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.ids import EngineId

log = logging.getLogger("dualpath.health")


def context_length_of(server_info: Mapping[str, Any]) -> int | None:
    """The most tokens of prompt and output that an engine takes; null where it does not say.

    SGLang refuses a prompt of `max_req_input_len` tokens, a bound that also knows its KV pool, and
    shortens without a word the output of one that comes near it.
    """
    known = [server_info.get(name) for name in ("context_length", "max_req_input_len")]
    known.append(_decode_room(server_info))
    return min((n for n in known if isinstance(n, int) and n > 0), default=None)


def _decode_room(server_info: Mapping[str, Any]) -> int | None:
    """A decode engine admits a prompt, in whole pages, only where it leaves a reserve of its pool
    free. One that never does would wait there until its deadline (`disaggregation/decode.py`,
    `_prealloc_required_tokens`)."""
    names = ("max_total_num_tokens", "num_reserved_decode_tokens", "page_size")
    sizes = [n for name in names if isinstance(n := server_info.get(name), int)]
    if server_info.get("disaggregation_mode") != "decode" or len(sizes) < len(names):
        return None
    pool, reserve, page = sizes
    return pool - reserve - page


DOWN_S = 0.25
"""Pause while an engine does not answer: turns may wait for it, and asking it costs nothing."""


class HealthChecks:
    """One task per engine. A refused connection counts at once; an engine that is slow to
    answer, as SGLang is within a long prefill, gets `health_failures` chances."""

    def __init__(
        self,
        clients: dict[EngineId, EngineClient],
        loop: PlacementLoop,
        drop: Callable[[EngineId, str], None],
        config: RouterConfig,
    ) -> None:
        """`drop` ends the turns of an engine that stands still, and says why."""
        self._clients = clients
        self._loop = loop
        self._drop = drop
        self._config = config
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for name, client in self._clients.items():
            self._tasks.append(asyncio.create_task(self._watch(name, client)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _watch(self, name: EngineId, client: EngineClient) -> None:
        failures = 0
        while True:
            try:
                await client.health(self._config.health_timeout_s)
            except EngineFailure as error:
                failures += 1
                gone = isinstance(error, EngineUnreachable)
                if gone or failures >= self._config.health_failures:
                    self._report(name, False, error.message)
                    if not gone and not await _scheduler_answers(client):
                        self._drop(name, error.message)
            else:
                failures = 0
                known = self._loop.engines[name].learned
                if not known:
                    await self._learn(name, client)
                self._report(name, True, "")
                if known:
                    await self._learn(name, client)
            pause = self._config.health_interval_s
            healthy = self._loop.engines[name].healthy
            await asyncio.sleep(pause if healthy else min(pause, DOWN_S))

    async def _learn(self, name: EngineId, client: EngineClient) -> None:
        """Asked at every check: weights can be updated while an engine serves. One that is too busy
        to answer cannot have been updated, and stays as known."""
        try:
            answer = await client.server_info()
        except EngineFailure as error:
            self._warn(name, error)
            return
        info = None
        try:
            info = from_server_info(answer)
        except EngineFailure as error:
            self._warn(name, error)
        self._loop.report_info(name, context_length_of(answer), info)

    def _warn(self, name: EngineId, error: EngineFailure) -> None:
        if not self._loop.engines[name].healthy:  # once
            log.warning("engine %s does not say what it is: %s", name, error.message)

    def _report(self, name: EngineId, healthy: bool, detail: str) -> None:
        if self._loop.engines[name].healthy != healthy:
            log.info("engine %s is %s %s", name, "healthy" if healthy else "unhealthy:", detail)
        self._loop.report_health(name, healthy, detail)


async def _scheduler_answers(client: EngineClient) -> bool:
    """An engine within one very long prefill fails its health checks too, but it works."""
    try:
        await client.server_info()
    except EngineFailure:
        return False
    return True
