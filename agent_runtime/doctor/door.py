"""Orders to an engine and their results, over its ordinary HTTP port (`contract.probe`)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import aiohttp

from agent_runtime.config import EngineEndpoint
from agent_runtime.dispatch.engine_client import EngineClient
from agent_runtime.doctor.places import Part
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.probe import (
    HOLD_S,
    PROBE_DEADLINE_S,
    ProbeOrder,
    ProbeResult,
    Source,
    result_from,
)

POLL_S = 0.05
POST_TIMEOUT_S = 15.0
"""The scheduler takes it between two batches."""
ANSWER_S = PROBE_DEADLINE_S + 5.0
BUSY_PAUSE_S = 0.5
BUSY_S = HOLD_S + 2.0
"""Another doctor may hold the scratch page for so long."""


class EngineDoor:
    """One engine. `run`: of this doctor. Everything that goes wrong is an EngineFailure."""

    def __init__(self, http: aiohttp.ClientSession, part: Part, run: str) -> None:
        self.part = part
        self._http = http
        self._run = run
        role: Any = part.role or "plain"
        endpoint = EngineEndpoint(name=part.name, role=role, url=part.url)
        self._client = EngineClient(http, endpoint)

    async def info(self) -> Mapping[str, Any]:
        """Its /server_info."""
        return await self._client.server_info()

    async def probe(self, source: Source, **what: Any) -> ProbeResult:
        """The result of an order; a failed probe is a result, too."""
        end = asyncio.get_running_loop().time() + BUSY_S
        while True:
            result = await self._once(source, what)
            if result.step != "busy" or asyncio.get_running_loop().time() > end:
                return result
            await asyncio.sleep(BUSY_PAUSE_S)

    async def release(self) -> None:
        """The scratch page's bytes are needed no longer."""
        await self._post(ProbeOrder(secrets.token_hex(8), self._run, "release"))

    async def _once(self, source: Source, what: Mapping[str, Any]) -> ProbeResult:
        order = ProbeOrder(secrets.token_hex(8), self._run, source, **what)
        await self._post(order)
        end = asyncio.get_running_loop().time() + ANSWER_S
        while asyncio.get_running_loop().time() < end:
            result = result_from(await self.info(), order.id)
            if result is None:
                raise EngineFailure(
                    f"{self.part.name} took the order of a probe and knows nothing of it: its "
                    "plugin is another version, or its second path is off"
                )
            if result.state != "running":
                return result
            await asyncio.sleep(POLL_S)
        raise EngineFailure(f"{self.part.name} gave no result of a probe in {ANSWER_S:g} s")

    async def _post(self, order: ProbeOrder) -> None:
        url = f"{self.part.url}/set_internal_state"
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
        body = {"server_args": order.to_settings()}
        try:
            async with self._http.post(url, json=body, timeout=timeout) as reply:
                text = (await reply.read()).decode(errors="replace")
        except TimeoutError as error:
            raise EngineFailure(f"{url}: no answer in {POST_TIMEOUT_S:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineFailure(f"{url}: {error or type(error).__name__}") from error
        if reply.status != 200:
            raise EngineFailure(f"{url} says {reply.status}: {text[:200]}")
