"""How much the first prompts of a trace's sessions have in common, at several scales.

    python -m benchmarks.replay.sharing --trace TRACE [--scale 1 0.1 0.01] [--model-path MODEL]

Of all tokens in first prompts, the part that a cache without limits would hold already when its
session arrives: what another session's first prompt starts with. A replay is true to its trace
where that part does not depend on the scale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from benchmarks.replay.scale import Filters
from benchmarks.replay.texts import Texts
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session
from benchmarks.replay.workload import WorkloadOptions, load
from dualpath_sglang.contract.errors import DualPathError

VOCABULARY = 150_000
"""Of tokens that stand for counts: so many that different content differs."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        texts = None if args.model_path is None else Texts(args.model_path)
        for scale in args.scale:
            filters = Filters(sessions=args.sessions, turns=1)
            options = WorkloadOptions(trace=args.trace, scale=scale, filters=filters)
            found = part(load(options, texts).sessions)
            print(f"scale {scale:g}: {100 * found:.1f} % of first prompts are shared", flush=True)
    except DualPathError as error:
        print(f"sharing: {error.message}", file=sys.stderr)
        return 2
    return 0


def part(sessions: Iterable[Session]) -> float:
    """Of the tokens of first prompts, those that an earlier one starts with too."""
    source = TokenSource(TokenSpace(VOCABULARY))
    prompts = [source.appended(replace(each, turns=each.turns[:1]))[0] for each in sessions]
    return shared_part(prompts)


def shared_part(prompts: Iterable[list[int]]) -> float:
    """Prompts in order share with their neighbour what they share with any before them."""
    ordered = [[], *sorted(prompts)]
    shared = sum(common(before, prompt) for before, prompt in pairwise(ordered))
    total = sum(map(len, ordered))
    return shared / total if total else 0.0


def common(one: list[int], two: list[int]) -> int:
    """Tokens that both start with."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay.sharing")
    parser.add_argument("--trace", type=Path, required=True, help="a trace file")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 0.1, 0.01])
    parser.add_argument("--sessions", type=int, help="the first N")
    parser.add_argument("--model-path", type=Path, help="tokenizer for recorded text")
    return parser


if __name__ == "__main__":
    sys.exit(main())
