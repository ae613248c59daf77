"""From observations to the JSON result (`schema.json` describes every field)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.replay.environment import machine, versions
from benchmarks.replay.plan import Goodput
from benchmarks.replay.records import TIERS, Observed, TurnRecord, TurnTokens
from benchmarks.replay.stats import summary
from dualpath_sglang.contract.errors import ConfigError

SCHEMA_VERSION = "dualpath-replay/1"
RESULT_FILE = "report.json"
HTML_FILE = "report.html"
TOKENS_FILE = "tokens.jsonl"


def build(
    seen: Observed,
    workload: dict[str, Any],
    driving: dict[str, Any],
    goodput: Goodput | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """The result of a replay that was not compared yet: `outputs_equal` is false until then."""
    done = [turn for turn in seen.turns if turn.error is None]
    return {
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "machine": machine(),
        "workload": workload,
        "driving": driving,
        "sessions": workload["sessions"],
        "turns": workload["turns"],
        "completed_turns": len(done),
        "compared_turns": 0,
        "errors": sum(session.error is not None for session in seen.sessions),
        "outputs_equal": False,
        "cached_tokens": _by_tier([turn.prefill for turn in done]),
        "cached_tokens_decode": _by_tier([turn.decode for turn in done]),
        "decode_reporting_turns": sum(turn.decode is not None for turn in done),
        "computed_tokens": sum((turn.prefill or {}).get("computed", 0) for turn in done),
        "prompt_tokens": sum(turn.prompt_tokens for turn in done),
        "output_tokens": sum(turn.output_tokens for turn in done),
        "wall_s": round(seen.wall_s, 3),
        "jct_s": summary(session.jct_s for session in seen.sessions),
        "ttft_ms": summary(turn.ttft_ms for turn in done),
        "ttst_ms": summary(turn.ttst_ms for turn in done),
        "tpot_ms": summary(turn.tpot_ms for turn in done),
        "e2e_ms": summary(turn.e2e_ms for turn in done),
        "throughput": _throughput(done, seen.wall_s),
        "goodput": None if goodput is None else _goodput(done, workload, goodput, seen.wall_s),
        "comparison": None,
        "midway": seen.midway,
        "warnings": seen.warnings,
        "turn_records": [asdict(turn) for turn in seen.turns],
        "session_records": [asdict(session) for session in seen.sessions],
    }


def _by_tier(counts: list[dict[str, int] | None]) -> dict[str, int | None]:
    """Sums over the turns that report; None where none does, which is not the same as 0."""
    known = [count for count in counts if count is not None]
    if not known:
        return dict.fromkeys(TIERS)
    return {tier: sum(count[tier] for count in known) for tier in TIERS}


def _throughput(done: list[TurnRecord], wall_s: float) -> dict[str, float]:
    seconds = max(wall_s, 1e-9)
    return {
        "turns_per_s": round(len(done) / seconds, 6),
        "prompt_tokens_per_s": round(sum(turn.prompt_tokens for turn in done) / seconds, 3),
        "output_tokens_per_s": round(sum(turn.output_tokens for turn in done) / seconds, 3),
    }


def _goodput(
    done: list[TurnRecord], workload: dict[str, Any], limits: Goodput, wall_s: float
) -> dict[str, Any]:
    """Turns that failed or were never sent count against the fraction."""
    good = sum(map(limits.good, done))
    return {
        "ttft_limit_ms": limits.ttft_ms,
        "tpot_limit_ms": limits.tpot_ms,
        "good_turns": good,
        "good_fraction": round(good / workload["turns"], 6),
        "good_turns_per_s": round(good / max(wall_s, 1e-9), 6),
        "required_fraction": limits.required,
        "met": limits.met(good, workload["turns"]),
    }


def write_result(folder: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=1, allow_nan=False)
    (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """Raises ConfigError when the folder holds no result of this schema version."""
    path = folder / RESULT_FILE
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a replay result: {error}", field="run") from error
    if result.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{path} is not of schema {SCHEMA_VERSION}", field="run")
    return result


def write_tokens(folder: Path, tokens: Sequence[TurnTokens]) -> None:
    with (folder / TOKENS_FILE).open("w", encoding="utf-8") as stream:
        for turn in tokens:
            stream.write(json.dumps(asdict(turn), separators=(",", ":")) + "\n")


def read_tokens(folder: Path) -> list[TurnTokens]:
    """Raises ConfigError when the file is missing or damaged."""
    path = folder / TOKENS_FILE
    try:
        with path.open(encoding="utf-8") as stream:
            return [TurnTokens(**json.loads(line)) for line in stream]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="run") from error
