"""One turn: its request body, its record, the digest of its prompt."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent_runtime.client import TurnOptions
from agent_runtime.trajectory.model import Tiers
from benchmarks.replay.records import TIERS, TurnRecord
from benchmarks.replay.router import Streamed
from benchmarks.replay.trace import Turn


def prompt_digest(token_ids: Sequence[int]) -> str:
    """SHA-256 of the ids as little-endian 32-bit integers."""
    packed = array("i", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return hashlib.sha256(packed.tobytes()).hexdigest()


def greedy(out: int) -> dict[str, Any]:
    """Sampling parameters (SGLang's names) for exactly `out` most likely tokens."""
    return {
        "max_new_tokens": out,
        "min_new_tokens": out,
        "ignore_eos": True,
        "temperature": 0.0,
    }


def turn_options(number: int, turn: Turn, prompt: list[int], history: int) -> TurnOptions:
    """Greedy, exactly as many tokens as wanted; refused by the router if it is not turn `number`.

    `history`: tokens that the router has. A turn that appends nothing sends the last token of
    its prompt again, because an engine needs something to compute.
    """
    kept = min(turn.keep, len(prompt) - 1)
    sampling = greedy(turn.generated)
    options = TurnOptions(token_ids=prompt[kept:], if_turn=number, sampling=sampling)
    if kept < history:
        options["keep"] = kept
    return options


def filled(record: TurnRecord, streamed: Streamed) -> TurnRecord:
    """The record with what the stream and its last event say."""
    done, times = streamed.done, streamed.times
    usage, placement = done.usage, done.placement
    many = len(times) > 1
    return replace(
        record,
        prompt_tokens=done.prompt_tokens,
        output_tokens=min(len(times), record.out),
        ttft_ms=(times[0] - streamed.sent) * 1e3,
        ttst_ms=(times[1] - times[0]) * 1e3 if many else None,
        tpot_ms=(times[-1] - times[0]) * 1e3 / (len(times) - 1) if many else None,
        e2e_ms=(streamed.ended - streamed.sent) * 1e3,
        queued_ms=done.timing.queued_s * 1e3,
        prefill={**_counts(usage.prefill), "computed": usage.computed_tokens},
        decode=None if usage.decode is None else _counts(usage.decode),
        engines={"prefill": placement.prefill, "decode": placement.decode},
        split=placement.split,
        pages=placement.pages,
        load={side: dict(load) for side, load in usage.load.items()} or None,
        reason=placement.reason,
    )


def _counts(tiers: Tiers) -> dict[str, int]:
    return {tier: getattr(tiers, tier) for tier in TIERS}
