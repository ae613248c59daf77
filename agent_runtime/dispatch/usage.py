"""What the engines say about cached tokens, from `meta_info` of their last events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_runtime.trajectory.model import Tiers, Usage
from dualpath_sglang.contract.report import TurnReport, from_meta

Meta = Mapping[str, Any]
_INPUT_LOGPROBS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")


def usage_of(prefill: Meta, decode: Meta, prompt_tokens: int, completion_tokens: int) -> Usage:
    """`prefill` and `decode` are the same for a plain engine.

    Each engine speaks for itself through the plugin. Without it P's own details count; D's are a
    copy of P's, so D then says nothing.
    """
    on_prefill, on_decode = from_meta(prefill), from_meta(decode)
    tiers = _upstream(prefill) if on_prefill is None else _tiers(on_prefill)
    reports = {"prefill": on_prefill, "decode": on_decode}
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=tiers.total,
        prefill=tiers,
        decode=None if on_decode is None else _tiers(on_decode),
        load={role: _load(report) for role, report in reports.items() if report is not None},
    )


def with_input_logprobs(decode: Meta, prefill: Meta) -> dict[str, Any]:
    """The decode engine's meta with the log-probabilities of the prompt, which only P computes."""
    extra = {name: prefill[name] for name in _INPUT_LOGPROBS if name in prefill}
    return {**decode, **extra}


def _tiers(report: TurnReport) -> Tiers:
    return Tiers(report.device, report.host, report.storage, report.peer)


def _load(report: TurnReport) -> dict[str, Any]:
    return {
        "plan_id": report.plan_id,
        "split_pages": report.split_pages,
        "store_bytes": report.store_bytes,
        "peer_bytes": report.peer_bytes,
        "load_s": report.load_s,
        "fallback": report.fallback,
        "received": report.received,
    }


def _upstream(meta: Meta) -> Tiers:
    details = meta.get("cached_tokens_details")
    if not isinstance(details, Mapping):
        return Tiers(device=_count(meta.get("cached_tokens")))
    return Tiers(*(_count(details.get(tier)) for tier in ("device", "host", "storage")))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
