"""One model call on its way through the cluster. An agent has one at a time and uses it again."""

from __future__ import annotations


class Turn:
    """Sizes in tokens, times in seconds. `prefill` and `decode` are GPU numbers.

    hit: in full pages, read from the store, `hit_decode` of it by the decode side. new: computed
    by prefill; left: of these, not computed yet. out: to generate. prompt: hit + new, and what was
    generated before a preemption. total: prompt and out as the client sees them.
    arrived, placed, loaded, first (token), second: times. order: of its placement.
    run, started: of its stay in a decode batch. reads: under way.
    """

    __slots__ = (
        "agent",
        "arrived",
        "decode",
        "first",
        "hit",
        "hit_decode",
        "index",
        "left",
        "loaded",
        "new",
        "order",
        "out",
        "placed",
        "prefill",
        "prompt",
        "reads",
        "run",
        "second",
        "started",
        "wanted",
    )

    def __init__(self, agent: int) -> None:
        self.agent = agent
        self.index = 0
        self.hit = self.hit_decode = self.new = self.left = self.prompt = 0
        self.out = self.wanted = 0
        self.reads = self.order = self.run = 0
        self.prefill = self.decode = -1
        self.arrived = self.placed = self.loaded = self.first = self.second = 0.0
        self.started = 0.0

    def begin(self, now: float, hit: int, new: int, out: int) -> None:
        """The agent's next turn."""
        self.arrived = now
        self.hit, self.new, self.left = hit, new, new
        self.prompt = hit + new
        self.out = self.wanted = out
        self.hit_decode = 0
        self.second = 0.0
