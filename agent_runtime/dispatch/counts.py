"""How turns ended, and the tokens of those that went well; `http.metrics` shows it."""

from __future__ import annotations

from collections import Counter

from agent_runtime.dispatch.events import Done, Failed
from agent_runtime.trajectory.model import Tiers
from dualpath_sglang.contract.errors import DualPathError, Internal

Labels = tuple[tuple[str, str], ...]


class TurnCounts:
    """`outcomes`: failures under their kind, `done`, `replayed`, `cancelled`."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.cached: Counter[Labels] = Counter()

    def count(self, last: Done | Failed | None) -> None:
        """The last event of a turn; null: it was cancelled."""
        match last:
            case None:
                self.outcomes["cancelled"] += 1
            case Failed(error):
                kind = error.kind if isinstance(error, DualPathError) else Internal.kind
                self.outcomes[kind] += 1
            case Done(replayed=True):
                self.outcomes["replayed"] += 1
            case Done(record):
                self.outcomes["done"] += 1
                self.tokens["prompt"] += record.prompt_tokens
                self.tokens["output"] += len(record.output)
                self._count("prefill", record.usage.prefill)
                if record.usage.decode is not None:
                    self._count("decode", record.usage.decode)

    def _count(self, side: str, tiers: Tiers) -> None:
        for tier in ("device", "host", "storage", "peer"):
            self.cached[("side", side), ("tier", tier)] += getattr(tiers, tier)
