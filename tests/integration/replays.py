"""One replay of agent sessions with a cold restart in its middle, compared with a plain engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from engine_metrics import kv_bytes
from stacks import restart_cold

from agent_runtime.stack.stack import RunningStack
from benchmarks.replay.plan import DriverOptions
from benchmarks.replay.runs import run_compare, run_replay
from benchmarks.replay.scale import Filters
from benchmarks.replay.tokens import space_of_model
from benchmarks.replay.workload import Workload, WorkloadOptions, load

SESSIONS, TURNS, MIDWAY = 20, 8, 4
PAGE = 16
KV_BYTES_PER_TOKEN = 4096
"""Of the default test model: 2 x 4 layers x 2 heads x 64 x float32."""


def agent_sessions(trace: Path) -> Workload:
    """20 sessions x 8 turns: the SWE-bench trace scaled down, or generated ones of its shape.

    So small that after a restart the prompts of all sessions fit into half of a host pool: SGLang
    declines to prefetch more than that at a time, and computes instead.
    """
    filters = Filters(SESSIONS, TURNS, TURNS, 2048)
    if trace.is_file():
        return load(WorkloadOptions(trace=trace, scale=0.1, filters=filters))
    return load(WorkloadOptions(generate="32k", scale=0.05, filters=filters))


def replay_with_restart(
    stack: RunningStack, reference: str, model: Path, trace: Path, out: Path
) -> dict[str, Any]:
    """The result, and `counters`: each engine's bytes by path since the restart."""

    async def midway(turn: int) -> None:
        await asyncio.to_thread(restart_cold, stack)

    options = DriverOptions(url=stack.router_url, midway_turns=(MIDWAY,), settle_s=3.0)
    work = agent_sessions(trace)
    asyncio.run(run_replay(work, space_of_model(model), options, out, midway=midway))
    counters = {engine.role: kv_bytes(engine.url) for engine in stack.engines}
    asyncio.run(run_compare(out, reference))
    result: dict[str, Any] = json.loads((out / "report.json").read_text())
    return result | {"counters": counters}


def records(result: dict[str, Any], turn: int) -> list[dict[str, Any]]:
    return [record for record in result["turn_records"] if record["turn"] == turn]


def full_pages(tokens: int) -> int:
    """Tokens in the full pages of so many tokens."""
    return tokens // PAGE * PAGE
