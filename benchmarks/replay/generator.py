"""Sessions with the shape that the DualPath paper published (arXiv 2602.21548, Table 2).

The traces behind the paper are not public; only means over 500 trajectories per set are. They
are not means over pooled turns (60 turns x (608 + 148) would be 45k tokens, not 28.6k), but they
fit together as means of per-trajectory means, which is what this generator assumes:

* total tokens T: `max_len * u^(m/(1-m))`-type power law (density rising to the cut at max_len)
  whose mean share of max_len is the published one;
* turns N: lognormal, independent of T, with the published mean, and a variance such that
  E[T/N] equals the published append + generated tokens per turn (sigma about 0.7 in all sets);
* generated tokens: a constant share of T, spread over turns by lognormal weights (sigma 0.7);
* appended tokens: the first turn (system prompt, task) takes the share of T which reproduces the
  published mean context; the rest is spread by lognormal weights (sigma 1.0: tool outputs have
  a heavy tail);
* nothing is shared between sessions, contexts are never rewritten and tool gaps are 0, as in
  the paper's replays.

"Context" is the mean over turns of the tokens before that turn's append, which makes the
published hit rate: 32721 / (32721 + 429) = 98.7 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.replay.trace import Session, Turn


@dataclass(frozen=True)
class Shape:
    """One row of Table 2 (means, in tokens) and the one fitted number, `first_share`."""

    max_len: int
    turns: int
    append: int
    generated: int
    total: int
    context: int
    first_share: float


SHAPES = {
    "32k": Shape(32 * 1024, 60, 608, 148, 28_639, 17_183, 0.254),
    "48k": Shape(48 * 1024, 106, 474, 172, 42_607, 25_120, 0.211),
    "64k": Shape(64 * 1024, 157, 429, 176, 55_958, 32_721, 0.193),
}
MIN_TOKENS_PER_TURN = 16


def generate(name: str, seed: int) -> Iterator[Session]:
    """An endless stream of sessions; the i-th depends on (name, seed, i) only."""
    shape = SHAPES[name]
    index = 0
    while True:
        yield one(name, shape, seed, index)
        index += 1


def one(name: str, shape: Shape, seed: int, index: int) -> Session:
    rng = random.Random(f"dualpath-replay/{name}/{seed}/{index}")
    mean_share = shape.total / shape.max_len
    total = max(64, round(shape.max_len * rng.random() ** (1 / mean_share - 1)))
    turns = _turn_count(rng, shape, total)
    generated = round(total * shape.generated / (shape.append + shape.generated))
    first = round(total * shape.first_share)
    outs = spread(generated, [rng.lognormvariate(0, 0.7) for _ in range(turns)])
    rest = [rng.lognormvariate(0, 1.0) for _ in range(turns - 1)]
    appends = [first, *spread(total - generated - first, rest)]
    made: list[Turn] = []
    for append, out in zip(appends, outs, strict=True):
        keep = made[-1].context if made else 0
        made.append(Turn(keep, append, out, out, 0.0 if made else None))
    return Session(f"paper-{name}", f"seed{seed}-{index:05d}", tuple(made))


def _turn_count(rng: random.Random, shape: Shape, total: int) -> int:
    variance = math.log(shape.turns * (shape.append + shape.generated) / shape.total)
    drawn = rng.lognormvariate(math.log(shape.turns) - variance / 2, math.sqrt(variance))
    return min(max(2, round(drawn)), total // MIN_TOKENS_PER_TURN)


def spread(total: int, weights: list[float]) -> list[int]:
    """Whole parts of at least 1, in proportion to the weights, that add up to `total`."""
    spare = total - len(weights)
    if spare < 0:
        raise ValueError(f"{total} tokens do not give {len(weights)} parts of at least 1")
    sum_weights = sum(weights)
    parts, reached, used = [], 0.0, 0
    for index, weight in enumerate(weights):
        reached += weight
        last = index == len(weights) - 1
        upto = spare if last else min(spare, round(spare * reached / sum_weights))
        parts.append(1 + upto - used)
        used = upto
    return parts
