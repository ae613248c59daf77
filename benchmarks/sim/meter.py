"""What is measured of a run, while it runs."""

from __future__ import annotations

from array import array

from benchmarks.sim.fabric import Fabric
from benchmarks.sim.turn import Turn


class Meter:
    """Seconds, by turn in the order in which turns got so far; and windows of fixed length."""

    def __init__(self, fabric: Fabric, window_s: float) -> None:
        self._fabric = fabric
        self.window_s = window_s
        self.turns = 0
        self.prompt_tokens = self.hit_tokens = self.new_tokens = self.output_tokens = 0
        self.ttft = array("f")
        """First token after arrival."""
        self.ttst = array("f")
        """Second token after the first."""
        self.tpot = array("f")
        """Between the second and the last, by token."""
        self.waited_s = self.read_s = self.prefill_s = 0.0
        """Summed over turns: arrival to placement, to loaded, to the first token."""
        self.jct: list[float] = []
        """When each agent ended, in the order in which they did."""
        self.stored: list[list[float]] = []
        """Per window: bytes that each storage NIC read."""
        self.prompt_tokens_by_window: list[int] = []
        self._served = [0.0] * len(fabric.loaded)
        self._prompt_before = 0

    def first_token(self, now: float, turn: Turn) -> None:
        turn.first = now
        self.ttft.append(now - turn.arrived)
        self.waited_s += turn.placed - turn.arrived
        self.read_s += turn.loaded - turn.placed
        self.prefill_s += now - turn.loaded
        self.prompt_tokens += turn.prompt
        self.hit_tokens += turn.hit
        self.new_tokens += turn.new

    def finished(self, now: float, turn: Turn) -> None:
        self.turns += 1
        self.output_tokens += turn.wanted
        if turn.wanted > 1:
            self.ttst.append(turn.second - turn.first)
        if turn.wanted > 2:
            self.tpot.append((now - turn.second) / (turn.wanted - 2))

    def end_window(self, now: float) -> None:
        served = self._fabric.storage_served(now)
        parts = [after - before for after, before in zip(served, self._served, strict=True)]
        self.stored.append(parts)
        self._served = served
        self.prompt_tokens_by_window.append(self.prompt_tokens - self._prompt_before)
        self._prompt_before = self.prompt_tokens
