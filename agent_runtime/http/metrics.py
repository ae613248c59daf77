"""GET /metrics: what the router counts, in Prometheus' text format.

Written out by hand: a dozen numbers need no client library, and nothing here is global.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent_runtime.dispatch.counts import Labels
from agent_runtime.router import Router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(router: Router) -> str:
    """All families, each with its help and type."""
    counts = router.counts
    loop, engines = router.loop, router.loop.engines.items()
    labels = {name: (("engine", name), ("role", state.endpoint.role)) for name, state in engines}
    families = [
        _family("turns_total", "Turns by how they ended.", _by("outcome", counts.outcomes)),
        _family("tokens_total", "Tokens of finished turns.", _by("kind", counts.tokens)),
        _family("cached_tokens_total", "Prompt tokens found cached, by whom.", counts.cached),
        _family("turns_inflight", "Turns on the engines.", {(): loop.inflight}),
        _family("turns_waiting", "Turns without a placement.", {(): loop.waiting}),
        _family(
            "policy_failures_total",
            "Passes in which the placement policy failed and round robin took over.",
            {(): loop.policy_failures},
        ),
        _family("sessions", "Sessions that exist.", {(): router.sessions.count}),
        _family(
            "engine_healthy",
            "1: the engine answers its health checks.",
            {labels[name]: int(state.healthy) for name, state in engines},
        ),
        _family(
            "engine_inflight",
            "Turns on one engine.",
            {labels[name]: loop.turns_on(name) for name, _ in engines},
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
