"""Does each component answer? One short question each, all at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from agent_runtime.doctor.door import EngineDoor
from agent_runtime.doctor.places import Part
from agent_runtime.doctor.report import Answer
from dualpath_sglang.contract.addresses import split_host_port
from dualpath_sglang.contract.errors import EngineFailure

TIMEOUT_S = 10.0


async def ask_engine(door: EngineDoor) -> tuple[Answer, Mapping[str, Any] | None]:
    """The answer, and the engine's /server_info."""
    part = door.part
    try:
        info = await door.info()
    except EngineFailure as error:
        return Answer(part.name, part.kind, part.url, False, error.message), None
    return Answer(part.name, part.kind, part.url, True), info


async def ask(http: aiohttp.ClientSession, part: Part) -> Answer:
    """Of anything but an engine."""
    if part.kind == "router":
        why = await _router(http, part.url)
    elif part.kind == "master":
        why = await _port(part.url)
    else:
        why = _process(part)
    detail = why or ("" if part.url else f"{part.state or 'running'}, process {part.pid}")
    return Answer(part.name, part.kind, part.url, not why, detail)


async def _router(http: aiohttp.ClientSession, url: str) -> str:
    """Why it is of no use; empty when it would take a turn."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with http.get(f"{url}/ready", timeout=timeout) as reply:
            tree = orjson.loads(await reply.read())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return str(error) or type(error).__name__
    missing = tree.get("missing") if isinstance(tree, dict) else None
    return f"it has no healthy engine of role {', '.join(missing)}" if missing else ""


async def _port(address: str) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(*split_host_port(address))
    except (OSError, TimeoutError, ValueError) as error:
        return str(error) or type(error).__name__
    writer.close()
    return ""


def _process(part: Part) -> str:
    """Storage node and renderer have no port for this: their process must be there."""
    if part.state not in ("ready", ""):
        return f"it is {part.state}; its log says why"
    try:
        os.kill(part.pid, 0)
    except ProcessLookupError:
        return f"its process {part.pid} is gone"
    except PermissionError:
        return ""
    return ""
