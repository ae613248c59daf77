"""How fast the router decides: placements a second on one core, and the whole planning step.

    make bench-scheduler        or        python -m benchmarks.scheduler --out out/scheduler

Writes OUT/summary.json and ends with status 1 if a target is missed: 10,000 placements a second
at 384 prefill and 768 decode engines and 10,000 sessions of mixed length (median of the runs), and
a planning step at 100k tokens of context, all pages known, of no more than 1.5 times that at 1k.
Seconds are of one thread on its core, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from agent_runtime.config import PolicyName
from agent_runtime.scheduling.policies import POLICIES
from benchmarks.replay.environment import machine, versions
from benchmarks.scheduler.placements import Placements, Run, Setup, argmin_us
from benchmarks.scheduler.planning import planning_us

POLICY: PolicyName = "dualpath"
WANTED_PER_S = 10_000
WANTED_RATIO = 1.5
SETUPS: tuple[Setup, ...] = (
    Setup(384, 768),
    Setup(384, 768, context=1_000),
    Setup(384, 768, context=100_000),
    Setup(384, 768, waiting=1),
    Setup(48, 96),
    Setup(2, 4, sessions=100),
)
"""The target is for the first."""


@dataclass(frozen=True)
class Point:
    """engines: prefill + decode. context, waiting: null where mixed. us: of one placement, passes
    weighing alike. waited: part of the decisions that was to wait. runs: placements a second."""

    engines: int
    sessions: int
    context: int | None
    waiting: int | None
    placements_per_s: float
    us_p50: float
    us_p99: float
    waited: float
    runs: list[float]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/scheduler"))
    parser.add_argument("--runs", type=int, default=5, help="of each setup")
    parser.add_argument("--placements", type=int, default=20_000, help="of one run")
    args = parser.parse_args(argv)
    points = [measure(setup, args.runs, args.placements) for setup in SETUPS]
    bare = argmin_us(SETUPS[0])
    planning = planning_us(POLICIES[POLICY], repeat=max(100, args.placements // 10))
    shortest, longest = min(planning), max(planning)
    ratio = planning[longest] / planning[shortest]
    reached = points[0].placements_per_s >= WANTED_PER_S and ratio <= WANTED_RATIO
    print(f"a bare argmin over the same engines: {bare:.2f} us")
    for context, us in planning.items():
        print(f"planning step at {context:>7} tokens: {us:6.1f} us")
    print(f"{longest} over {shortest} tokens: {ratio:.2f}x, wanted at most {WANTED_RATIO}x")
    print("all targets reached" if reached else "A TARGET WAS MISSED")
    args.out.mkdir(parents=True, exist_ok=True)
    summary = {
        "policy": POLICY,
        "points": [asdict(point) for point in points],
        "argmin_us": bare,
        "planning_us": planning,
        "planning_ratio": ratio,
        "wanted": {"placements_per_s": WANTED_PER_S, "planning_ratio": WANTED_RATIO},
        "pass": reached,
        "machine": machine(),
        "versions": versions(),
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0 if reached else 1


def measure(setup: Setup, runs: int, placements: int) -> Point:
    made = [Placements(setup, POLICIES[POLICY], seed).run(placements) for seed in range(runs)]
    point = _point(setup, made)
    context = "mixed" if setup.context is None else f"{setup.context}"
    waiting = "1-32" if setup.waiting is None else f"{setup.waiting}"
    print(
        f"{setup.prefill:>3}P {setup.decode:>3}D  {setup.sessions:>5} sessions  "
        f"context {context:>6}  {waiting:>4} waiting: {point.placements_per_s:7.0f} placements/s  "
        f"p50 {point.us_p50:6.1f} us  p99 {point.us_p99:7.1f} us",
        flush=True,
    )
    return point


def _point(setup: Setup, runs: list[Run]) -> Point:
    us = sorted(value for run in runs for value in run.us)
    return Point(
        engines=setup.prefill + setup.decode,
        sessions=setup.sessions,
        context=setup.context,
        waiting=setup.waiting,
        placements_per_s=median(run.placements_per_s for run in runs),
        us_p50=us[len(us) // 2],
        us_p99=us[int(len(us) * 0.99)],
        waited=sum(run.waited for run in runs) / len(runs),
        runs=[run.placements_per_s for run in runs],
    )


if __name__ == "__main__":
    sys.exit(main())
