"""`dualpath replay` and `dualpath replay compare`.

Exit status: 0 all turns done (for compare: all outputs equal; for --slo: met; for --search: a rate
found); 1 errors, differences, missed; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.replay import table
from benchmarks.replay.generator import SHAPES
from benchmarks.replay.midway import MidwayFailed
from benchmarks.replay.mooncake import BLOCK_TOKENS, INPUTS, MooncakeOptions
from benchmarks.replay.plan import (
    DriverOptions,
    Gaps,
    Goodput,
    parse_goodput,
    parse_times,
    rate_arrivals,
    recorded_arrivals,
)
from benchmarks.replay.probes import FILE as SEARCH_FILE
from benchmarks.replay.probes import conclusion, run_search
from benchmarks.replay.results import HTML_FILE
from benchmarks.replay.runs import run_compare, run_replay
from benchmarks.replay.scale import Filters
from benchmarks.replay.schedule import plan
from benchmarks.replay.sources import FORMATS
from benchmarks.replay.texts import Texts, has_tokenizer
from benchmarks.replay.tokens import TokenSpace, space_of_model
from benchmarks.replay.workload import TOKENS, Workload, WorkloadOptions, load
from dualpath_sglang.contract.errors import ConfigError, DualPathError

FIRST_RATE = 1.0
"""Users per second in the first probe of a search."""


def describe(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The flags of a replay or, where the first word says so, of a comparison."""
    if words[:1] == ["compare"]:
        _describe_compare(parser)
        run = _compare
    else:
        _describe_replay(parser)
        run = _replay
    parser.set_defaults(run=functools.partial(_guarded, run), words=list(words))


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return run(args)
    except MidwayFailed as error:
        print(f"dualpath replay: stopped, nothing was written: {error}", file=sys.stderr)
        return 1
    except DualPathError as error:
        field = f" ({error.field})" if error.field else ""
        print(f"dualpath replay: {error.message}{field}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dualpath replay: interrupted; nothing was written", file=sys.stderr)
        return 130


def _replay(args: argparse.Namespace) -> int:
    workload = load(_workload_options(args), _texts(args))
    if workload.unused_text and args.tokens == "auto":
        print(
            "dualpath replay: the trace's text is not used: that takes --model-path with a "
            "tokenizer.json and a scale of at most 1",
            file=sys.stderr,
        )
    space = _token_space(args)
    goodput = _goodput(args)
    command = ["dualpath", "replay", *args.words]
    if args.search:
        return _search(args, workload, space, goodput, command)
    options = _driver_options(args, _arrivals(args, workload), args.rate)
    result = asyncio.run(
        run_replay(workload, space, options, args.out, goodput=goodput, command=command)
    )
    print(f"{table.as_text(result)}\nreport: {args.out / HTML_FILE}")
    missed = goodput is not None and result["goodput"]["met"] is False
    return 1 if result["errors"] or missed else 0


def _search(
    args: argparse.Namespace,
    workload: Workload,
    space: TokenSpace,
    slo: Goodput | None,
    command: list[str],
) -> int:
    if slo is None or slo.required is None:
        raise ConfigError("search needs --slo ttft:MS tpot:MS", field="search")
    if args.flush_after_turn or args.arrivals != "zero":
        raise ConfigError("search goes without --flush-after-turn and --arrivals", field="search")
    first = FIRST_RATE if args.rate is None else args.rate
    options = _driver_options(args)
    result = asyncio.run(run_search(workload, space, options, args.out, slo, first, command))
    print(f"{conclusion(result)}\nreport: {args.out / SEARCH_FILE}")
    return 0 if result["rate_per_s"] is not None else 1


def _goodput(args: argparse.Namespace) -> Goodput | None:
    if args.slo is None:
        return parse_goodput(args.goodput) if args.goodput else None
    if args.goodput:
        raise ConfigError("give only one of --slo and --goodput", field="slo")
    return parse_goodput(args.slo, "slo", args.attainment)


def _compare(args: argparse.Namespace) -> int:
    result = asyncio.run(run_compare(args.run_folder, args.reference_url, args.concurrency))
    print(f"{table.as_text(result)}\nreport: {args.run_folder / HTML_FILE}")
    return 0 if result["outputs_equal"] and not result["errors"] else 1


def _workload_options(args: argparse.Namespace) -> WorkloadOptions:
    filters = Filters(args.sessions, args.turns, args.min_turns, args.max_context)
    return WorkloadOptions(
        args.trace,
        args.format,
        args.generate,
        args.seed,
        args.scale,
        filters,
        _mooncake_options(args),
        args.tokens,
    )


def _texts(args: argparse.Namespace) -> Texts | None:
    """None: by counts. A model folder without a tokenizer file is a mistake only where asked for
    text."""
    folder = args.model_path
    if folder is None or args.tokens == "counts":
        return None
    return Texts(folder) if args.tokens == "text" or has_tokenizer(folder) else None


def _mooncake_options(args: argparse.Namespace) -> MooncakeOptions | None:
    if args.block is None and args.inputs is None:
        return None
    block = BLOCK_TOKENS if args.block is None else args.block
    return MooncakeOptions(block, args.inputs or "auto")


def _driver_options(
    args: argparse.Namespace,
    arrivals_s: tuple[float | None, ...] | None = None,
    rate_per_s: float | None = None,
) -> DriverOptions:
    most = math.inf if args.max_gap is None else args.max_gap
    return DriverOptions(
        url=args.url,
        gaps=Gaps(parse_times(args.gaps, "gaps"), most),
        arrivals_s=arrivals_s,
        concurrency=args.concurrency,
        midway_turns=tuple(args.flush_after_turn),
        settle_s=args.settle,
        turn_timeout_s=args.turn_timeout,
        rate_per_s=rate_per_s,
    )


def _arrivals(args: argparse.Namespace, workload: Workload) -> tuple[float | None, ...] | None:
    """None: all at once."""
    schedule = plan(workload.sessions)
    factor = parse_times(args.arrivals, "arrivals")
    if args.rate is not None:
        if factor:
            raise ConfigError("give only one of --rate and --arrivals", field="rate")
        return tuple(rate_arrivals(schedule, args.rate, args.seed))
    return tuple(recorded_arrivals(workload.sessions, schedule, factor)) if factor else None


def _token_space(args: argparse.Namespace) -> TokenSpace:
    if (args.model_path is None) == (args.vocab_size is None):
        raise ConfigError("give exactly one of --model-path and --vocab-size", field="model_path")
    if args.model_path is not None:
        return space_of_model(args.model_path)
    return TokenSpace(args.vocab_size, frozenset(args.avoid_ids))


def _describe_replay(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replay agent sessions against a router. See also: dualpath replay compare --help."
    )
    parser.add_argument("--url", required=True, help="the router, http://host:port")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument("--model-path", type=Path, help="model folder: which token ids to use")
    parser.add_argument("--vocab-size", type=int, help="instead: token ids below this number")
    parser.add_argument("--avoid-ids", type=int, nargs="*", default=[], help="but none of these")
    _add_workload(parser.add_argument_group("sessions"))
    _add_driving(parser.add_argument_group("driving"))


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--trace", type=Path, help="a trace file, plain or .gz")
    group.add_argument("--format", choices=["auto", *FORMATS], default="auto", help="of the trace")
    group.add_argument(
        "--tokens",
        choices=TOKENS,
        default="auto",
        help="what turns append: the recorded text, or as many tokens (auto: text where there is)",
    )
    group.add_argument("--block", type=int, help="Mooncake: tokens of a block (512)")
    group.add_argument(
        "--inputs",
        choices=INPUTS,
        help="Mooncake, rows with session_id: input_length is the whole prompt or what is new "
        "(auto: whole where the rows start with the same block)",
    )
    group.add_argument("--generate", choices=list(SHAPES), help="sessions of the paper's shape")
    group.add_argument("--seed", type=int, default=0, help="of generator and arrivals")
    group.add_argument("--scale", type=float, default=1.0, help="token counts times this")
    group.add_argument("--sessions", type=int, help="the first N (generator: 20)")
    group.add_argument("--turns", type=int, help="only the first N turns of each session")
    group.add_argument("--min-turns", type=int, default=1, help="drop sessions with fewer")
    group.add_argument("--max-context", type=int, help="cut sessions where prompt+output exceed it")


def _add_driving(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate",
        type=float,
        help="open loop: users per second, Poisson (a session without parent is a user)",
    )
    group.add_argument(
        "--arrivals",
        default="zero",
        help="instead: zero (all at once, the default), recorded, or a factor on recorded times",
    )
    group.add_argument("--concurrency", type=int, help="most sessions at a time")
    group.add_argument("--gaps", default="zero", help="pauses: zero, recorded, or a factor")
    group.add_argument("--max-gap", type=float, metavar="S", help="no pause is longer")
    group.add_argument(
        "--goodput", nargs=2, metavar=("ttft:MS", "tpot:MS"), help="limits of a good turn"
    )
    group.add_argument(
        "--slo",
        nargs=2,
        metavar=("ttft:MS", "tpot:MS"),
        help="the same, and enough turns have to be good: exit status 1 where they are not",
    )
    group.add_argument(
        "--attainment", type=float, default=0.9, help="part of the turns that --slo asks for (0.9)"
    )
    group.add_argument(
        "--search",
        action="store_true",
        help="find the highest rate that meets --slo, from --rate on; every probe is a replay",
    )
    group.add_argument(
        "--flush-after-turn",
        type=int,
        action="append",
        default=[],
        metavar="T",
        help="flush the engines' caches once every session has done T turns (repeatable)",
    )
    group.add_argument(
        "--settle",
        type=float,
        default=2.0,
        help="seconds before a flush, in which engines finish writing to the store",
    )
    group.add_argument("--turn-timeout", type=float, default=600.0, help="seconds per turn")


def _describe_compare(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dualpath replay compare --run RUN --reference-url URL [--concurrency N]"
    parser.description = (
        "Compare a replay's outputs, token for token, with one plain SGLang engine."
    )
    parser.add_argument("compare", choices=["compare"], help=argparse.SUPPRESS)
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        required=True,
        type=Path,
        help="the --out folder of a replay",
    )
    parser.add_argument("--reference-url", required=True, help="the engine, http://host:port")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time")
