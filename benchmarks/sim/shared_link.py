"""One link whose flows share it equally: processor sharing in virtual time.

`served` grows by rate / n while n flows are under way, so a flow of `size` bytes that starts at
virtual time v ends at v + size whatever starts and ends beside it. Ends are kept in a heap: an
event costs O(log n), however many bytes move.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from benchmarks.sim.loop import Action, Loop, Phase

SLACK_BYTES = 1.0
"""A flow with no more left has ended: rounding of times late in a run is worth this much."""
MIN_FREE_SHARE = 0.05
"""Of a link's rate: what reservations leave to the flows that share the rest."""
NEVER = float("inf")


class SharedLink:
    """`rate` in bytes/s, of which reservations take their part first.

    `reserve` and `release` change what is left; flows that have started share it anew at once.
    """

    __slots__ = (
        "_armed",
        "_ends",
        "_free",
        "_loop",
        "_reserved",
        "_sequence",
        "_since",
        "_virtual",
        "busy_s",
        "name",
        "rate",
        "served",
    )

    def __init__(self, loop: Loop, name: str, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"{name}: a link's rate must be above 0 bytes/s, not {rate}")
        self.name = name
        self.rate = rate
        self.served = 0.0
        """Bytes of flows carried up to the last change (`settle` brings it up to date)."""
        self.busy_s = 0.0
        """Time with a flow under way, up to the last change."""
        self._loop = loop
        self._free = rate
        self._reserved = 0.0
        self._virtual = 0.0
        self._since = 0.0
        self._armed = NEVER
        self._sequence = 0
        self._ends: list[tuple[float, int, Action | None, Any]] = []

    def start(self, now: float, size: float, done: Action | None, argument: Any = None) -> None:
        """A flow of `size` bytes; `done(time, argument)` runs when its last byte has arrived."""
        self.settle(now)
        self._sequence += 1
        heappush(self._ends, (self._virtual + size, self._sequence, done, argument))
        self._arm(now)

    def reserve(self, now: float, rate: float) -> None:
        """Takes `rate` bytes/s from the flows; negative gives it back."""
        self.settle(now)
        self._reserved += rate
        self._free = max(self.rate - self._reserved, self.rate * MIN_FREE_SHARE)
        if self._ends:
            self._arm(now)

    @property
    def flows(self) -> int:
        return len(self._ends)

    @property
    def reserved(self) -> float:
        return self._reserved

    def settle(self, now: float) -> None:
        """Brings virtual time and the counters up to `now`."""
        flows = len(self._ends)
        if flows:
            passed = now - self._since
            moved = passed * self._free
            self._virtual += moved / flows
            self.served += moved
            self.busy_s += passed
        else:
            self._virtual = 0.0
        self._since = now

    def _arm(self, now: float) -> None:
        """Sees to an event at the first end. One that is armed for earlier arms itself anew."""
        ends = self._ends
        due = now + max(0.0, ends[0][0] - self._virtual) * len(ends) / self._free
        if due < self._armed:
            self._armed = due
            self._loop.at(due, Phase.LINK, self._fire, due)

    def _fire(self, now: float, due: float) -> None:
        if due != self._armed:
            return  # an earlier event was armed after this one
        self._armed = NEVER
        self.settle(now)
        ends = self._ends
        ended = []
        while ends and ends[0][0] <= self._virtual + SLACK_BYTES:
            ended.append(heappop(ends))
        if ends:
            self._arm(now)
        for _, _, done, argument in ended:
            if done is not None:
                done(now, argument)
