"""`python -m benchmarks.rig run | summary | clean`.

Exit status: 0 done (also when a target is missed); 1 an arm has no result or the summary is not
valid; 2 bad input, or no lab can be built here; 130 interrupted. Whatever was started is stopped
in every case, and finished runs are kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.rig import lab as lab_module
from benchmarks.rig.arms import ARMS, TOPOLOGIES, named
from benchmarks.rig.bench import EXTRAS, Bench, Order, summarize
from benchmarks.rig.config import RigConfig
from benchmarks.rig.report import as_text
from dualpath_sglang.contract.errors import DualPathError

SIZES = ("sessions", "turns", "context", "seed", "max_inflight")
"""Settings of a run that are flags too."""
STANDARD_RUNS = {"upstream_prefill_only": 3, "split": 3}
PRESETS = {
    "standard": (("1P1D", "1P2D"), dict.fromkeys(ARMS, 1) | STANDARD_RUNS),
    "full": (tuple(TOPOLOGIES), dict.fromkeys(ARMS, 3)),
}
"""Topologies and runs by arm. `standard` takes less than 50 minutes on two cores."""


PAIRS = {
    "standard": {"isolated": 20, "unshaped": 0, "tpot": 0},
    "full": {"isolated": 20, "unshaped": 5, "tpot": 10},
}
"""Of the measurements that are no runs of an arm."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    # A terminated run must take its lab down, as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = args.command(args)
    except KeyboardInterrupt:
        print("\nrig: interrupted; finished runs are kept", file=sys.stderr)
        return 130
    except DualPathError as error:
        print(f"rig: {error.message}", file=sys.stderr)
        return 2
    return code


def run(args: argparse.Namespace) -> int:
    config = rig_config(args)
    order = rig_order(args)
    summary = Bench(config, order, args.out, args.model, step).carry_out(fresh=args.fresh)
    print(f"\n{as_text(summary)}\n\nsummary: {args.out / 'summary.json'}")
    missing = [
        f"{topology} {name}"
        for topology, block in summary["topologies"].items()
        for name, arm in block["arms"].items()
        if not arm["runs"]
    ]
    return 0 if summary["valid"] and not missing else 1


def summary_again(args: argparse.Namespace) -> int:
    """From the files of the runs, for example after a change of the rules."""
    summary = summarize(args.out, {})
    print(as_text(summary))
    return 0 if summary["valid"] else 1


def clean(args: argparse.Namespace) -> int:
    removed = lab_module.clean()
    print(f"removed: {', '.join(removed) or 'nothing was left'}")
    return 0


def rig_config(args: argparse.Namespace) -> RigConfig:
    given = {name: getattr(args, name) for name in SIZES}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.nic_mbit is not None:
        changes["nic_bits_per_s"] = round(args.nic_mbit * 1e6)
    return replace(RigConfig(), **changes)


def rig_order(args: argparse.Namespace) -> Order:
    """The preset, narrowed by --topology and --arm, with --runs of each arm."""
    topologies, runs = PRESETS[args.preset]
    if args.topology:
        topologies = tuple(named("topology", key, list(TOPOLOGIES)) for key in args.topology)
    arms = [named("arm", key, list(ARMS)) for key in args.arm or ARMS]
    if args.runs is not None:
        runs = dict.fromkeys(ARMS, args.runs)
    # A run that was narrowed down measures what was asked for only.
    narrowed = bool(args.topology or args.arm)
    pairs = {name: 0 if narrowed else PAIRS[args.preset][name] for name in EXTRAS}
    for name in EXTRAS:
        if (given := getattr(args, f"{name}_pairs")) is not None:
            pairs[name] = given
    return Order(topologies, tuple(arms), runs, pairs)


def step(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rig", description=__doc__)
    commands = parser.add_subparsers(required=True)
    go = commands.add_parser("run", help="measure; goes on where a stopped run was")
    go.set_defaults(command=run)
    go.add_argument("--preset", choices=list(PRESETS), default="standard")
    go.add_argument("--topology", action="append", metavar="T", help=", ".join(TOPOLOGIES))
    go.add_argument("--arm", action="append", metavar="A", help=", ".join(ARMS))
    go.add_argument("--runs", type=int, help="of every arm (default: the preset's)")
    for name in EXTRAS:
        go.add_argument(f"--{name}-pairs", type=int, metavar="N", help="0: do not measure it")
    go.add_argument("--model", type=Path, help="model folder (default: OUT/model, made if new)")
    go.add_argument("--fresh", action="store_true", help="forget the runs in the folder")
    go.add_argument("--nic-mbit", type=float, help="rate of a storage NIC, Mbit/s")
    for name in SIZES:
        go.add_argument(f"--{name.replace('_', '-')}", type=int)
    again = commands.add_parser("summary", help="make summary and report again from the runs")
    again.set_defaults(command=summary_again)
    for sub in (go, again):
        sub.add_argument("--out", type=Path, default=Path("out/rig"))
    commands.add_parser("clean", help="remove what a killed run left").set_defaults(command=clean)
    return parser
