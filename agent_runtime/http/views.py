"""What answers look like: sessions and turns as JSON trees."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from agent_runtime.trajectory.model import TurnRecord
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
    usage, computed = record.usage, record.usage.computed_tokens
    return {
        "session_id": session.head.id,
        "turn": record.turn,
        "prompt_tokens": record.prompt_tokens,
        "token_ids": record.output.tolist(),
        "text": record.text,
        "finish_reason": record.finish_reason,
        "matched_stop": record.matched,
        "history_tokens": record.history_tokens,
        "replayed": replayed,
        "usage": {
            **asdict(usage),
            "computed_tokens": computed,
            "prefill": {**asdict(usage.prefill), "computed": computed},
        },
        "placement": asdict(record.placement),
        "timing": asdict(record.timing),
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
