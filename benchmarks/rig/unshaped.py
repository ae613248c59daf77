"""When storage is no bottleneck: does the second path cost anything?

`pairs`: runs of `upstream_decode_hicache` and of ours take turns, with both sets of engines up.
`tpot`: the time between the tokens of a running request while others load, with pulls (decode
path) and without (prefill path), in turn on the same engines.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from agent_runtime.client import AsyncDualPathClient
from benchmarks.replay.router import CallFailed, Router
from benchmarks.replay.stats import percentile
from benchmarks.replay.trace import Session, Turn
from benchmarks.replay.turns import turn_options
from benchmarks.rig import measure
from benchmarks.rig.arms import ARMS, BESIDE, TOPOLOGIES
from benchmarks.rig.machines import EngineSet
from benchmarks.rig.runfile import RUN_SCHEMA
from benchmarks.rig.runner import RunFailed, Runner
from benchmarks.rig.workload import only_first_turn

UPSTREAM, OURS = "upstream_decode_hicache", "split"
FORCED = ("prefill_path", "decode_path")
BACKGROUND = Turn(keep=0, append=64, out=600, out_kept=600)
"""The request whose tokens are timed."""


def unshaped(runner: Runner, pairs: int) -> dict[str, Any]:
    """turns/s of ours over upstream, pair by pair; then each forced arm once."""
    sets = {
        UPSTREAM: runner.prepare(TOPOLOGIES["1P1D"], ARMS[UPSTREAM]),
        OURS: runner.prepare(BESIDE, ARMS[OURS], beside=True),
    }
    rates: dict[str, list[float]] = {key: [] for key in sets}
    for pair in range(pairs):
        for key in list(sets)[:: 1 if pair % 2 == 0 else -1]:
            rates[key].append(_rate(runner, sets[key], key, f"unshaped {pair + 1}/{pairs} {key}"))
    forced = {key: _rate(runner, sets[OURS], key, f"unshaped {key}") for key in FORCED}
    return unshaped_result(rates, forced) | {"digest": runner.config.digest}


def unshaped_result(rates: dict[str, list[float]], forced: dict[str, float]) -> dict[str, Any]:
    """Pure. `ratio`: the median over pairs; `spread`: the smallest and the largest."""
    ratios = [ours / upstream for ours, upstream in zip(rates[OURS], rates[UPSTREAM], strict=True)]
    return {
        "schema": RUN_SCHEMA,
        "pairs": len(ratios),
        "ratio": round(median(ratios), 4),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "turns_per_s": rates,
        "forced_turns_per_s": forced,
    }


def _rate(runner: Runner, engines: EngineSet, key: str, label: str) -> float:
    url = engines.url(ARMS[key])
    runner.flush(url)
    seen = runner.drive([session.measured() for session in runner.workload], label, url)
    window = measure.window(seen.turns, seen.sessions)
    if not window.turns or any(session.error for session in seen.sessions):
        raise RunFailed(f"{label}: sessions failed")
    return round(window.turns_per_s, 6)


# --- tokens while others load ------------------------------------------------------------------


def tpot(runner: Runner, pairs: int) -> dict[str, Any]:
    """Gaps between the tokens of one request, with and without pulls beside it."""
    engines = runner.prepare(BESIDE, ARMS[OURS], beside=True)
    prompts = _prompts(runner)
    gaps: dict[str, list[list[float]]] = {key: [] for key in FORCED}
    for pair in range(pairs):
        for key in FORCED[:: 1 if pair % 2 == 0 else -1]:
            url = engines.url(ARMS[key])
            background = runner.tokens(f"tpot/{pair}/{key}").stream(("background",), 64)
            gaps[key].append(asyncio.run(_gaps(url, background, prompts)))
            middle = median(gaps[key][-1])
            runner.show(f"TPOT {pair + 1}/{pairs} {key}: p50 {middle:.2f} ms")
    return tpot_result(gaps) | {"digest": runner.config.digest}


def tpot_result(gaps: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Pure. `ratio`: of the medians over pairs of p50, with pulls over without; in ms."""
    shown: dict[str, dict[str, Any]] = {}
    for key, runs in gaps.items():
        p50 = [percentile(sorted(run), 50) for run in runs]
        p99 = [percentile(sorted(run), 99) for run in runs]
        shown[key] = {
            "p50": round(median(p50), 4),
            "p99": round(median(p99), 4),
            "p99_spread": [round(min(p99), 4), round(max(p99), 4)],
        }
    without, pulls = (shown[key] for key in FORCED)
    return {
        "schema": RUN_SCHEMA,
        "pairs": len(gaps["decode_path"]),
        "ratio": round(pulls["p50"] / without["p50"], 4),
        "without_pulls": without,
        "with_pulls": pulls,
    }


def _prompts(runner: Runner) -> Iterator[tuple[Session, list[int]]]:
    """Lone first turns, round and round: pools are too small to keep one for its next time."""
    for index in itertools.count():
        session = only_first_turn(runner.workload.sessions, index).measured()
        yield session, runner.tokens(f"tpot/{index}").appended(session)[0]


async def _gaps(
    url: str, background: Sequence[int], prompts: Iterator[tuple[Session, list[int]]]
) -> list[float]:
    """Milliseconds between the background request's tokens while others load one by one."""
    async with AsyncDualPathClient(url) as client:
        router = Router(client)
        running = asyncio.create_task(_turn(router, BACKGROUND, list(background)))
        try:
            while not running.done():
                session, tokens = next(prompts)
                await _turn(router, session.turns[0], tokens)
            times = await running
        except CallFailed as error:
            running.cancel()
            raise RunFailed(f"tokens while others load: {error}") from error
    return [(b - a) * 1e3 for a, b in itertools.pairwise(times)]


async def _turn(router: Router, turn: Turn, tokens: list[int]) -> list[float]:
    """One turn in a session of its own; the times of its tokens in seconds."""
    session_id = await router.create({})
    streamed = await router.turn(session_id, turn_options(0, turn, tokens, history=0))
    await router.delete(session_id)
    return streamed.times
