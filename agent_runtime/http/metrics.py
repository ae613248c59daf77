"""GET /metrics: what the router counts, in Prometheus' text format.

Written out by hand: a dozen numbers need no client library, and nothing here is global.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from agent_runtime.router import Router
from agent_runtime.trajectory.model import Tiers, TurnRecord
from dualpath_sglang.contract.errors import DualPathError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]


class TurnCounts:
    """Turns by how they ended, and the tokens of those that went well."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.cached: Counter[Labels] = Counter()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Counts a failure under its kind; `done` counts the rest."""
        try:
            yield
        except DualPathError as error:
            self.outcomes[error.kind] += 1
            raise
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
            raise
        except Exception:
            self.outcomes["internal_error"] += 1
            raise

    def done(self, record: TurnRecord, *, replayed: bool) -> None:
        self.outcomes["replayed" if replayed else "done"] += 1
        if replayed:
            return
        self.tokens["prompt"] += record.prompt_tokens
        self.tokens["output"] += len(record.output)
        self._count("prefill", record.usage.prefill)
        if record.usage.decode is not None:
            self._count("decode", record.usage.decode)

    def _count(self, side: str, tiers: Tiers) -> None:
        for tier in ("device", "host", "storage", "peer"):
            self.cached[("side", side), ("tier", tier)] += getattr(tiers, tier)


def exposition(router: Router, counts: TurnCounts) -> str:
    """All families, each with its help and type."""
    loop, engines = router.loop, router.loop.engines.items()
    labels = {name: (("engine", name), ("role", state.endpoint.role)) for name, state in engines}
    families = [
        _family("turns_total", "Turns by how they ended.", _by("outcome", counts.outcomes)),
        _family("tokens_total", "Tokens of finished turns.", _by("kind", counts.tokens)),
        _family("cached_tokens_total", "Prompt tokens found cached, by whom.", counts.cached),
        _family("turns_inflight", "Turns on the engines.", {(): loop.inflight}),
        _family("turns_waiting", "Turns without a placement.", {(): loop.waiting}),
        _family("sessions", "Sessions that exist.", {(): router.sessions.count}),
        _family(
            "engine_healthy",
            "1: the engine answers its health checks.",
            {labels[name]: int(state.healthy) for name, state in engines},
        ),
        _family(
            "engine_inflight",
            "Turns on one engine.",
            {labels[name]: state.inflight for name, state in engines},
        ),
    ]
    return "".join(families)


def _by(label: str, counts: Mapping[str, int]) -> dict[Labels, int]:
    return {((label, name),): count for name, count in counts.items()}


def _family(name: str, text: str, values: Mapping[Labels, int]) -> str:
    full = f"dualpath_router_{name}"
    kind = "counter" if name.endswith("_total") else "gauge"
    lines = [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
    for labels, value in sorted(values.items()):
        inner = ",".join(f'{key}="{_escaped(word)}"' for key, word in labels)
        lines.append(f"{full}{{{inner}}} {value}" if inner else f"{full} {value}")
    return "\n".join(lines) + "\n"


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
