"""What the second path counts. `dualpath_sglang.metrics.PrometheusMeter` publishes it."""

from __future__ import annotations

from typing import Literal, Protocol

from dualpath_sglang.metrics import Path


class Meter(Protocol):
    """Called from several threads. Reasons and paths are the labels."""

    def moved(self, path: Path, tokens: int, amount: int) -> None:
        """`tokens` of KV, `amount` bytes, arrived here over `path`."""

    def fallback(self, reason: str, pages: int = 1) -> None:
        """`pages` came another way than planned, or not at all; 0 is not counted."""

    def plan(self, outcome: str) -> None:
        """One plan was followed, or the reason why it was changed or not."""

    def took(self, what: Literal["staging", "pull", "load"], seconds: float) -> None:
        """Duration of one request's staging (D), or of a whole load: `pull` if a peer gave pages
        of it, `load` otherwise."""

    def gauge(self, name: Literal["pinned", "quarantined", "exchanges"], value: int) -> None:
        """So many pages, or exchanges, now."""
