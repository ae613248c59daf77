"""The serving path on real parts: exact tokens from a replayed agent trace, also after both engines
were killed and came back with nothing but the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_metrics import kv_bytes

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


def workload(trace: Path) -> Workload:
    """20 sessions x 8 turns: the SWE-bench trace scaled down, or generated ones of its shape."""
    filters = Filters(SESSIONS, TURNS, TURNS, 2048)
    if trace.is_file():
        return load(WorkloadOptions(trace=trace, scale=0.1, filters=filters))
    return load(WorkloadOptions(generate="32k", scale=0.15, filters=filters))


@pytest.fixture(scope="module")
def replayed(
    pair: RunningStack,
    reference: str,
    model_dir: Path,
    swebench: Path,
    restart_cold: Callable[[], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The result of one replay with a cold restart of both engines in its middle."""
    out = tmp_path_factory.mktemp("replay")
    work = workload(swebench)

    async def midway(turn: int) -> None:
        await asyncio.to_thread(restart_cold)

    options = DriverOptions(url=pair.router_url, midway_turns=(MIDWAY,), settle_s=3.0)
    asyncio.run(run_replay(work, space_of_model(model_dir), options, out, midway=midway))
    # The engines are new since the restart, and so are their counters.
    counters = {engine.role: kv_bytes(engine.url) for engine in pair.engines}
    asyncio.run(run_compare(out, reference))
    result: dict[str, Any] = json.loads((out / "report.json").read_text())
    return result | {"counters": counters}


def records(result: dict[str, Any], turn: int) -> list[dict[str, Any]]:
    return [r for r in result["turn_records"] if r["turn"] == turn]


def test_every_token_is_that_of_a_plain_engine(replayed: dict[str, Any]) -> None:
    assert replayed["errors"] == 0
    assert replayed["compared_turns"] == replayed["turns"] == SESSIONS * TURNS
    assert replayed["outputs_equal"]


def test_after_a_cold_restart_the_prefix_comes_from_the_store(replayed: dict[str, Any]) -> None:
    """At least 90 % of the full pages of each session's next prompt, on P and on D together or
    apart, as the plan says; without a plan each side reads all of them."""
    for record in records(replayed, MIDWAY):
        pages = record["keep"] // PAGE * PAGE
        for side in ("prefill", "decode"):
            assert record[side]["device"] + record[side]["host"] == 0
            assert record[side]["storage"] >= 0.9 * pages, (side, record)


def test_each_engine_counted_the_bytes_it_read(replayed: dict[str, Any]) -> None:
    first = sum(r["keep"] // PAGE * PAGE for r in records(replayed, MIDWAY))
    wanted = 0.9 * first * KV_BYTES_PER_TOKEN
    assert replayed["counters"]["prefill"]["store_to_prefill"] >= wanted
    assert replayed["counters"]["decode"]["store_to_decode"] >= wanted


def test_generated_tokens_are_hits_of_the_next_turn(replayed: dict[str, Any]) -> None:
    """On D at once: it holds what it generated. After the restart on P too, through the store."""
    for turn in range(1, TURNS):
        if turn == MIDWAY:
            continue
        for record in records(replayed, turn):
            held = sum(record["decode"].values())
            # The last token was never fed back, so its page may be missing.
            assert held >= (record["keep"] - 1) // PAGE * PAGE, record
