"""`make demo`: real engines, store and router replay agent sessions; then the outputs are checked.

1. make a small test model, if there is none yet;
2. start a stack: one prefill and one decode engine, store, router;
3. replay generated sessions; midway both engines' caches are flushed, so that what follows must
   come from the store;
4. stop the stack, start one plain engine without any cache, and replay the same token ids;
5. write report.json and report.html.

Exit status: 0 no error, all outputs equal, store hits seen; 1 otherwise; 2 the stack did not come
up; 130 interrupted. Whatever was started is stopped in every case.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_runtime.config import EngineGroup, ModelConfig, RouterConfig, StackConfig, StoreConfig
from agent_runtime.stack.stack import Stack
from agent_runtime.stack.status import Event
from benchmarks.replay import table
from benchmarks.replay.midway import MidwayFailed
from benchmarks.replay.plan import DriverOptions
from benchmarks.replay.results import HTML_FILE, RESULT_FILE
from benchmarks.replay.runs import run_compare, run_replay
from benchmarks.replay.scale import Filters
from benchmarks.replay.tokens import space_of_model
from benchmarks.replay.workload import WorkloadOptions, load
from benchmarks.testmodel import make_model
from dualpath_sglang.contract.errors import DualPathError

SETTLE_S = 5.0
MAX_CONTEXT_TOKENS = 2048


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    # A terminated demo must take its engines with it, as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = run(args, ["python", "-m", "benchmarks.replay.demo", *words])
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    except MidwayFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except DualPathError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 2
    problems = verdict(result)
    print(f"\n{table.as_text(result)}\n\nreport: {args.out / RESULT_FILE}, {args.out / HTML_FILE}")
    for problem in problems:
        print(f"demo: FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def run(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """All steps; the final result. Raises DualPathError."""
    out: Path = args.out
    model: Path = args.model or out / "model"
    make_model(model, step)
    filters = Filters(args.sessions, args.turns, args.turns, MAX_CONTEXT_TOKENS)
    workload = load(
        WorkloadOptions(generate="32k", seed=args.seed, scale=args.scale, filters=filters)
    )
    space = space_of_model(model)
    step("starting one prefill and one decode engine, the store and the router")
    with Stack(pair_config(model, out, args.cpu_threads), on_event=show).start() as stack:
        step(f"replaying {len(workload.sessions)} sessions, {workload.turns} turns")
        options = DriverOptions(
            url=stack.router_url, midway_turns=(max(1, args.turns // 2),), settle_s=SETTLE_S
        )
        asyncio.run(run_replay(workload, space, options, out, command=command))
    step("stack stopped; starting one plain engine as the reference")
    with Stack(plain_config(model, out, args.cpu_threads), on_event=show).start() as stack:
        step("replaying the same token ids on it")
        return asyncio.run(run_compare(out, stack.url("reference")))


def verdict(result: dict[str, Any]) -> list[str]:
    """What is wrong with a demo's result; empty when it is as it has to be."""
    problems = []
    if result["errors"]:
        problems.append(f"{result['errors']} sessions failed")
    if not result["outputs_equal"]:
        problems.append("outputs differ from the plain engine, or were not all compared")
    if not result["cached_tokens"]["storage"]:
        problems.append("nothing was read from the store although the caches were flushed")
    return problems


def pair_config(model: Path, out: Path, threads: int) -> StackConfig:
    """One prefill and one decode engine; float32, because outputs are compared exactly."""
    return StackConfig(
        model=ModelConfig(path=str(model)),
        cpu=True,
        cpu_threads=threads,
        dtype="float32",
        router=RouterConfig(port=0),
        run_dir=str(out / "run"),
    )


def plain_config(model: Path, out: Path, threads: int) -> StackConfig:
    """One ordinary engine that computes every prompt from its first token."""
    return StackConfig(
        model=ModelConfig(path=str(model)),
        cpu=True,
        cpu_threads=threads,
        dtype="float32",
        store=StoreConfig(enabled=False),
        engines=(EngineGroup(role="plain", name="reference", flags={"disable-radix-cache": True}),),
        start_router=False,
        start_renderer=False,
        run_dir=str(out / "run-reference"),
    )


def step(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def show(event: Event) -> None:
    if event.component:
        detail = f": {event.detail}" if event.detail else ""
        print(f"    {event.at_s:6.1f} s  {event.component} {event.state}{detail}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay.demo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the report")
    parser.add_argument("--model", type=Path, help="model folder (default: OUT/model, made if new)")
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--turns", type=int, default=8, help="of each session")
    parser.add_argument("--scale", type=float, default=0.15, help="of the paper's 32K set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-threads", type=int, default=1, help="of each engine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
