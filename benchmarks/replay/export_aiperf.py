"""A result in the form of AIPerf's `profile_export_aiperf.json`.

Schema 1.4 of AIPerf 0.13 (`JsonExportData`), which takes metrics of other names too: a turn is a
request, its latency ends with its last token, and `job_completion_time` is that of a session.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.replay.records import TokenTimes
from benchmarks.replay.stats import moments

FILE = "profile_export_aiperf.json"
SCHEMA_VERSION = "1.4"
PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Metric = dict[str, Any]


def write(folder: Path, result: Mapping[str, Any], times: Sequence[TokenTimes]) -> None:
    text = json.dumps(build(result, times), indent=2, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def build(result: Mapping[str, Any], times: Sequence[TokenTimes]) -> dict[str, Any]:
    end = datetime.fromisoformat(result["created_at"])
    failed = [session for session in result["session_records"] if session["error"]]
    made: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **_requests(result, times),
        **_totals(result),
        **_sessions(result),
        "was_cancelled": False,
        "is_complete": True,
        "error_summary": _errors(failed),
        "start_time": (end - timedelta(seconds=result["wall_s"])).isoformat(),
        "end_time": end.isoformat(),
        "run_info": {
            "random_seed": result["workload"]["seed"],
            "cli_command": " ".join(result["command"]),
        },
        "metadata": {"source": "dualpath replay", "dataset": result["workload"]["dataset"]},
    }
    return {name: value for name, value in made.items() if value not in (None, [])}


def _requests(result: Mapping[str, Any], times: Sequence[TokenTimes]) -> dict[str, Metric | None]:
    done = [turn for turn in result["turn_records"] if turn["error"] is None]
    paced = [turn["tpot_ms"] for turn in done if turn["tpot_ms"] is not None]
    chunks = [b - a for one in times for a, b in pairwise(sorted(Counter(one.token_s)))]
    cached = [sum(t["prefill"].values()) - t["prefill"]["computed"] for t in done if t["prefill"]]
    return {
        "request_latency": _each("ms", map(_latency_ms, done)),
        "time_to_first_token": _each("ms", (turn["ttft_ms"] for turn in done)),
        "time_to_second_token": _each("ms", (turn["ttst_ms"] for turn in done)),
        "inter_token_latency": _each("ms", paced),
        "inter_chunk_latency": _each("ms", (seconds * 1e3 for seconds in chunks)),
        "output_token_throughput_per_user": _each(
            "tokens/sec/user", (1e3 / pace for pace in paced if pace > 0)
        ),
        "output_sequence_length": _each("tokens", (turn["output_tokens"] for turn in done)),
        "input_sequence_length": _each("tokens", (turn["prompt_tokens"] for turn in done)),
        "usage_prompt_cache_read_tokens": _each("tokens", cached),
    }


def _totals(result: Mapping[str, Any]) -> dict[str, Metric | None]:
    seconds = max(result["wall_s"], 1e-9)
    inputs, outputs, good = result["prompt_tokens"], result["output_tokens"], result["goodput"]
    failed = sum(turn["error"] is not None for turn in result["turn_records"])
    return {
        "request_throughput": _one("requests/sec", result["completed_turns"] / seconds),
        "request_count": _one("requests", result["completed_turns"]),
        "error_request_count": _one("requests", failed),
        "output_token_throughput": _one("tokens/sec", outputs / seconds),
        "total_token_throughput": _one("tokens/sec", (inputs + outputs) / seconds),
        "goodput": good and _one("requests/sec", good["good_turns_per_s"]),
        "good_request_count": good and _one("requests", good["good_turns"]),
        "total_isl": _one("tokens", inputs),
        "total_osl": _one("tokens", outputs),
        "benchmark_duration": _one("sec", seconds),
    }


def _sessions(result: Mapping[str, Any]) -> dict[str, Metric | None]:
    """Metrics that AIPerf does not have."""
    records = result["session_records"]
    jct = (session["jct_s"] for session in records)
    return {
        "job_completion_time": _each("ms", (None if s is None else s * 1e3 for s in jct)),
        "turns_per_session": _each("requests", (s["completed_turns"] for s in records)),
    }


def _latency_ms(turn: Mapping[str, Any]) -> float:
    """From sending to the last token."""
    return float(turn["ttft_ms"] + (turn["tpot_ms"] or 0.0) * max(0, turn["output_tokens"] - 1))


def _each(unit: str, values: Iterable[float | None]) -> Metric | None:
    """A distribution over records; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    made = moments(known, PERCENTS)
    return {
        "unit": unit,
        "avg": made.mean,
        **{f"p{percent}": value for percent, value in made.percentiles.items()},
        "min": min(known),
        "max": max(known),
        "std": made.std,
        "count": len(known),
        "sum": sum(known),
    }


def _one(unit: str, value: float) -> Metric:
    return {"unit": unit, "avg": value}


def _errors(failed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(
        (each["error"]["status"], each["error"]["kind"], each["error"]["message"])
        for each in failed
    )
    return [
        {"error_details": {"code": code, "type": kind, "message": message}, "count": count}
        for (code, kind, message), count in counts.items()
    ]
