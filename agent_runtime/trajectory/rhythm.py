"""What a session is doing, and when its next turn may come.

    (new) ── turn starts ──▶ running ── it ends in a tool call ──▶ waiting_for_tool ─┐
                              ▲   └───── it ends otherwise ───────▶ idle ────────────┤ next turn
                              └──────────────────────────────────────────────────────┘
    any ── it is said, or `ended_after_s` without a turn ──▶ ended, until a turn comes after all

An end that is only inferred takes nothing away for good: a late turn revives the session.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

REMEMBERED = 16
"""Times between turns that a session remembers."""


class State(StrEnum):
    NEW = "new"
    RUNNING = "running"
    WAITING_FOR_TOOL = "waiting_for_tool"
    IDLE = "idle"
    ENDED = "ended"


@dataclass
class Rhythm:
    """Times: on one monotonic scale, in seconds. tool: that the last turn called (empty: none)."""

    tool: str = ""
    running: bool = False
    over: bool = False
    ended_at: float | None = None
    gaps: deque[tuple[str, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def starts(self, now: float) -> None:
        """A turn was asked for."""
        if self.ended_at is not None and not self.running:
            self.gaps.append((self.tool, max(0.0, now - self.ended_at)))
        self.running, self.over = True, False

    def ends(self, now: float, tool: str = "", *, over: bool = False) -> None:
        """The turn has ended, with a call of `tool`. over: the client says that it was the last."""
        self.running, self.over = False, over
        self.ended_at, self.tool = now, tool

    def state(self, now: float, ended_after_s: float) -> State:
        if self.running:
            return State.RUNNING
        if self.ended_at is None:
            return State.NEW
        if self.over or now - self.ended_at >= ended_after_s:
            return State.ENDED
        return State.WAITING_FOR_TOOL if self.tool else State.IDLE

    def expected_gap_s(self) -> float | None:
        """Time until the next turn, by what came after calls of the same tool, else after any turn;
        null: the session has had one turn at most."""
        same = [gap for tool, gap in self.gaps if tool == self.tool]
        gaps = same or [gap for _, gap in self.gaps]
        return median(gaps) if gaps else None
