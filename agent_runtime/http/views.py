"""What answers look like: sessions and turns as JSON trees."""

from __future__ import annotations

from typing import Any

from agent_runtime.trajectory.model import Tiers, TurnRecord
from agent_runtime.trajectory.session import Session


def session_tree(session: Session, *, token_ids: bool = False) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "session_id": session.head.id,
        "created_at": session.head.created_at,
        "metadata": dict(session.head.metadata),
        "turns": session.turns,
        "history_tokens": len(session.tokens),
        "busy": session.busy,
    }
    if token_ids:
        tree["token_ids"] = session.tokens.tolist()
    return tree


def turn_tree(session: Session, record: TurnRecord, *, replayed: bool) -> dict[str, Any]:
    usage, timing, placement = record.usage, record.timing, record.placement
    computed = usage.computed_tokens
    return {
        "session_id": session.head.id,
        "turn": record.turn,
        "prompt_tokens": record.prompt_tokens,
        "token_ids": record.output.tolist(),
        "text": record.text,
        "finish_reason": record.finish_reason,
        "history_tokens": record.history_tokens,
        "replayed": replayed,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "computed_tokens": computed,
            "prefill": {**_tiers(usage.prefill), "computed": computed},
            "decode": None if usage.decode is None else _tiers(usage.decode),
            "load": usage.load,
        },
        "placement": {
            "prefill": placement.prefill,
            "decode": placement.decode,
            "split": placement.split,
            "pages": placement.pages,
            "reason": placement.reason,
        },
        "timing": {
            "queued_s": timing.queued_s,
            "ttft_s": timing.ttft_s,
            "e2e_s": timing.e2e_s,
        },
    }


def summary(record: TurnRecord) -> str:
    """One line for the log."""
    usage, timing, placement = record.usage, record.timing, record.placement
    ttft = "-" if timing.ttft_s is None else f"{timing.ttft_s:.3f}"
    return (
        f"turn {record.turn} on {placement.prefill}/{placement.decode} ({placement.reason}): "
        f"{record.prompt_tokens} tokens ({usage.cached_tokens} cached) + {len(record.output)}, "
        f"{record.finish_reason}, queued {timing.queued_s:.3f} s, first token {ttft} s, "
        f"all {timing.e2e_s:.3f} s"
    )


def _tiers(tiers: Tiers) -> dict[str, int]:
    return {
        "device": tiers.device,
        "host": tiers.host,
        "storage": tiers.storage,
        "peer": tiers.peer,
    }
