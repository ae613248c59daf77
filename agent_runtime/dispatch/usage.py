"""What the engines say about cached tokens, from `meta_info` of their last events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_runtime.trajectory.model import Tiers, Usage

Meta = Mapping[str, Any]


def usage_of(prefill: Meta, decode: Meta, prompt_tokens: int, completion_tokens: int) -> Usage:
    """`prefill` and `decode` are the same for a plain engine.

    D's `cached_tokens_details` is a copy of P's; what D itself found is in `dualpath`, if our
    plugin runs there.
    """
    cached = _count(prefill.get("cached_tokens"))
    details = prefill.get("cached_tokens_details")
    found = _tiers(details) if isinstance(details, Mapping) else Tiers(device=cached)
    own = decode.get("dualpath")
    on_decode = own.get("decode") if isinstance(own, Mapping) else None
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached,
        prefill=found,
        decode=_tiers(on_decode) if isinstance(on_decode, Mapping) else None,
    )


def _tiers(details: Mapping[str, Any]) -> Tiers:
    return Tiers(*(_count(details.get(tier)) for tier in ("device", "host", "storage")))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
