"""The event loop: what happens next, in an order that is the same on every machine.

Events run by (time, phase, sequence). At one time everything that ends comes before everything that
begins, so that what begins sees a settled world; within a phase the first event asked for runs
first. Time is what the loop hands to an event, never a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

Action = Callable[[float, Any], None]
"""What an event does, given the time in seconds and the argument it was made with."""


class Phase(IntEnum):
    """The order of what happens at one time."""

    LINK = 0
    """Bytes have arrived."""
    FORWARD = 1
    """A forward pass or a decode has ended."""
    ARRIVAL = 2
    """Turns reach the router."""
    REPORT = 3
    """Engines report to the router."""
    PLACE = 4
    """The router places what waits."""
    START = 5
    """Engines form their next batch."""
    RATES = 6
    """Links share themselves anew."""
    OBSERVE = 7
    """Measurements of a settled world."""


class Loop:
    """A heap of events. `now` is the time of the event under way, in seconds."""

    __slots__ = ("_heap", "_sequence", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """How many events have run."""
        self._heap: list[tuple[float, int, int, Action, Any]] = []
        self._sequence = 0

    def at(self, time: float, phase: int, action: Action, argument: Any = None) -> None:
        """Runs `action(time, argument)` at `time`. Raises ValueError for a time that is past."""
        if not time >= self.now:
            raise ValueError(f"an event at {time} s was asked for at {self.now} s")
        self._sequence += 1
        heappush(self._heap, (time, phase, self._sequence, action, argument))

    def run(self, until: float = float("inf")) -> None:
        """Runs every event up to and including time `until`; events made on the way too."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            time, _, _, action, argument = heappop(heap)
            self.now = time
            self.events += 1
            action(time, argument)

    @property
    def idle(self) -> bool:
        return not self._heap

    def stop(self) -> None:
        """Forgets every event that has not run."""
        self._heap.clear()
