"""What a replay observed. Times in milliseconds (`_ms`) or seconds since its start (`_s`)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

TIERS = ("device", "host", "storage", "peer")
"""Where an engine found KV: in its own two memories, in the store, in the other engine's memory."""


@dataclass(frozen=True)
class Failure:
    """Why a turn (or a session outside of its turns) failed, and the HTTP status if any."""

    kind: str
    message: str
    status: int | None = None


@dataclass(frozen=True)
class TurnRecord:
    """One turn that was sent.

    ttft: from sending to the first token. ttst: from the first token to the second.
    tpot: mean time per token after the first, (last - first) / (tokens - 1). The last two are
    None with fewer than two tokens; tokens in one event have one time.
    prefill and decode: tokens by tier on P and on D (None: that engine did not report).
    split of pages: the plan, D reads [0, split) from the store and P [split, pages), in KV pages
    (None: there was no plan). load: by engine role, its own account of loading (None: none).
    """

    session: str
    turn: int
    keep: int
    append: int
    out: int
    started_s: float
    gap_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: float | None = None
    ttst_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    queued_ms: float | None = None
    prefill: dict[str, int] | None = None
    decode: dict[str, int] | None = None
    engines: dict[str, str] | None = None
    split: int | None = None
    pages: int | None = None
    load: dict[str, dict[str, Any]] | None = None
    reason: str | None = None
    error: Failure | None = None


@dataclass(frozen=True)
class TurnTokens:
    """The exact ids of one finished turn: prompt = context[:keep] + append."""

    session: str
    turn: int
    keep: int
    append: list[int]
    output: list[int]
    prompt_tokens: int
    prompt_sha256: str


@dataclass(frozen=True)
class TokenTimes:
    """When each token of one finished turn came, in seconds since the start of the replay."""

    token_s: array[float]


@dataclass(frozen=True)
class SessionRecord:
    """One trajectory. jct_s: from its arrival to the end of its last turn (None: it failed)."""

    session: str
    dataset: str
    planned_turns: int
    completed_turns: int
    arrival_s: float
    end_s: float
    jct_s: float | None
    error: Failure | None = None


@dataclass
class Observed:
    """Everything of one run; filled by the driver only. `tokens` and `times` are those of the
    finished turns, in one order."""

    turns: list[TurnRecord] = field(default_factory=list)
    tokens: list[TurnTokens] = field(default_factory=list)
    times: list[TokenTimes] = field(default_factory=list)
    sessions: list[SessionRecord] = field(default_factory=list)
    midway: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    wall_s: float = 0.0
