"""A whole replay, and a whole comparison, with their files."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay import export_aiperf, export_sglang
from benchmarks.replay.compare import apply, compare
from benchmarks.replay.driver import replay
from benchmarks.replay.html_report import write_html
from benchmarks.replay.plan import DriverOptions, Goodput, Midway
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import Observed
from benchmarks.replay.results import (
    build,
    read_result,
    read_tokens,
    write_result,
    write_tokens,
)
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.workload import Workload
from dualpath_sglang.contract.errors import ConfigError


async def run_replay(
    workload: Workload,
    space: TokenSpace,
    options: DriverOptions,
    out: Path,
    goodput: Goodput | None = None,
    midway: Midway | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Replays and returns the result; writes it into `out` as report.json and report.html, in the
    forms of `bench_serving` and AIPerf, and the token ids as tokens.jsonl.

    Raises ConfigError when `out` cannot be a folder, before anything is sent, and MidwayFailed
    when the action at a midway stop fails; failed turns do not raise.
    """
    make_folder(out)
    with Progress("replay", workload.turns) as progress:
        source = TokenSource(space)
        seen = await replay(workload.sessions, source, options, progress, midway)
    shown = command or sys.argv
    result = build(seen, workload.describe(), driving(options, space), goodput, shown)
    save(out, result, seen)
    return result


def driving(options: DriverOptions, space: TokenSpace) -> dict[str, Any]:
    """The `driving` block of a result."""
    return {
        "url": options.url,
        "mode": "offline" if options.arrivals_s is None else "open-loop",
        "arrivals_s": None if options.arrivals_s is None else list(options.arrivals_s),
        "rate_per_s": options.rate_per_s,
        "concurrency": options.concurrency,
        "gap_factor": options.gaps.factor,
        "max_gap_s": options.gaps.most_s if math.isfinite(options.gaps.most_s) else None,
        "midway_turns": list(options.midway_turns),
        "vocab_size": space.vocab_size,
        "avoided_ids": len(space.avoid),
    }


def make_folder(out: Path) -> None:
    """Raises ConfigError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}", field="out") from error


def save(out: Path, result: dict[str, Any], seen: Observed) -> None:
    """All files of one replay."""
    write_tokens(out, seen.tokens)
    write_result(out, result)
    write_html(out, result)
    export_sglang.write(out, result, seen.times)
    export_aiperf.write(out, result, seen.times)


async def run_compare(run: Path, reference_url: str, concurrency: int = 4) -> dict[str, Any]:
    """Compares a finished run with one plain engine; rewrites its report.json and report.html."""
    result, tokens = read_result(run), read_tokens(run)
    with Progress("compare", len(tokens)) as progress:
        comparison = await compare(tokens, result["turns"], reference_url, progress, concurrency)
    result = apply(result, comparison)
    write_result(run, result)
    write_html(run, result)
    return result
