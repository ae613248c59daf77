"""A result as one line of the JSONL that SGLang's `bench_serving` writes.

Its names and meanings, a turn being a request: `latency` ends with the stream, TPOT is
(latency - TTFT) / (tokens - 1), ITL pools the times between tokens of all requests, and tokens
that came together share the time since the last ones. Beside them, under names of our own, job
completion times, which `bench_serving` does not know.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.replay.records import TokenTimes
from benchmarks.replay.stats import moments

FILE = "bench_serving.jsonl"
PERCENTS = (90, 95, 99)
DOES_NOT_APPLY = (
    "tag",
    "sharegpt_output_len",
    "random_input_len",
    "random_output_len",
    "random_range_ratio",
    "server_info",
    "accept_length",
)


def write(folder: Path, result: Mapping[str, Any], times: Sequence[TokenTimes]) -> None:
    line = json.dumps(build(result, times), allow_nan=False)
    (folder / FILE).write_text(line + "\n", encoding="utf-8")


def build(result: Mapping[str, Any], times: Sequence[TokenTimes]) -> dict[str, Any]:
    done = [turn for turn in result["turn_records"] if turn["error"] is None]
    seconds = max(result["wall_s"], 1e-9)
    inputs, outputs = result["prompt_tokens"], result["output_tokens"]
    driving = result["driving"]
    return {
        **dict.fromkeys(DOES_NOT_APPLY),
        "backend": "dualpath",
        "dataset_name": result["workload"]["dataset"],
        "request_rate": "inf" if driving["arrivals_s"] is None else "trace",
        "max_concurrency": driving["concurrency"],
        "duration": result["wall_s"],
        "completed": len(done),
        "total_input_tokens": inputs,
        "total_input_text_tokens": inputs,
        "total_input_vision_tokens": 0,
        "total_output_tokens": outputs,
        "total_output_tokens_retokenized": outputs,
        "request_throughput": len(done) / seconds,
        "input_throughput": inputs / seconds,
        "output_throughput": outputs / seconds,
        "total_throughput": (inputs + outputs) / seconds,
        **_latency("e2e_latency", [turn["e2e_ms"] for turn in done]),
        **_latency("ttft", [turn["ttft_ms"] for turn in done]),
        **_latency("tpot", [_tpot(turn) for turn in done if turn["output_tokens"] > 1]),
        **_latency("itl", [gap * 1e3 for one in times for gap in between_tokens(one)]),
        "concurrency": sum(turn["e2e_ms"] for turn in done) / 1e3 / seconds,
        **_peaks(done, times),
        "cache_report": _cache_report(result, done),
        **_latency("jct", [s["jct_s"] * 1e3 for s in result["session_records"] if s["jct_s"]]),
        "sessions": result["sessions"],
        "failed_sessions": result["errors"],
        "session_rate": driving["rate_per_s"],
    }


def between_tokens(times: TokenTimes) -> list[float]:
    """Seconds from each token to the next. Those that came in one event share the time since the
    event before; the first event's are one with the first token."""
    gaps: list[float] = []
    events = sorted(Counter(times.token_s).items())
    for (before, _), (at, count) in pairwise(events):
        gaps += [(at - before) / count] * count
    return gaps


def _tpot(turn: Mapping[str, Any]) -> float:
    return float((turn["e2e_ms"] - turn["ttft_ms"]) / (turn["output_tokens"] - 1))


def _latency(name: str, values: Sequence[float]) -> dict[str, float]:
    """Zeros without values, as there."""
    made = moments(values or [0.0], PERCENTS)
    return {
        f"mean_{name}_ms": made.mean,
        f"median_{name}_ms": made.median,
        f"std_{name}_ms": made.std,
        **{f"p{percent}_{name}_ms": value for percent, value in made.percentiles.items()},
    }


def _peaks(done: Sequence[Mapping[str, Any]], times: Sequence[TokenTimes]) -> dict[str, float]:
    """The most tokens, and the most requests under way, in a second since the first request."""
    first = min((turn["started_s"] for turn in done), default=0.0)
    tokens = Counter(math.floor(at - first) for one in times for at in one.token_s)
    running: Counter[int] = Counter()
    for turn in done:
        begin = math.floor(turn["started_s"] - first)
        end = math.floor(turn["started_s"] + turn["e2e_ms"] / 1e3 - first)
        running.update(range(begin, end + 1))
    return {
        "max_output_tokens_per_s": float(max(tokens.values(), default=0)),
        "max_concurrent_requests": max(running.values(), default=0),
    }


def _cache_report(result: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the prefill engines. `peer` is ours: pulled from the memory of the other engine."""
    tiers = result["cached_tokens"]
    cached = sum(count or 0 for count in tiers.values())
    total = sum(turn["prompt_tokens"] for turn in done)
    return {
        "total_prompt_tokens": total,
        "total_cached_tokens": cached,
        "cache_hit_rate_pct": round(100 * cached / total, 2) if total else 0.0,
        "device_cached_tokens": tiers["device"],
        "host_cached_tokens": tiers["host"],
        "storage_cached_tokens": tiers["storage"],
        "peer_cached_tokens": tiers["peer"],
        "storage_backend": "mooncake" if tiers["storage"] else None,
    }
