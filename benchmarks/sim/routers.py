"""The seam to placement: what a simulated cluster asks a router.

`RoundRobin` and `ByTokens` stand in for the shipped scheduler until its policies are called here.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from benchmarks.sim.turn import Turn


class Router(Protocol):
    """Owns the waiting turns. Sets a placed turn's `prefill`, `decode` and `hit_decode`."""

    @property
    def waiting(self) -> int: ...

    def arrive(self, now: float, turn: Turn) -> None: ...

    def place(self, now: float) -> list[Turn]:
        """One pass; those that got a place, in order."""
        ...

    def loaded(self, now: float, turn: Turn) -> None: ...

    def computed(self, now: float, turn: Turn) -> None: ...

    def finished(self, now: float, turn: Turn) -> None: ...


class RoundRobin:
    """GPUs in turn; paths in turn, or P reads all."""

    def __init__(self, prefill_gpus: int, decode_gpus: int, path: str) -> None:
        self._p, self._d = prefill_gpus, decode_gpus
        self._alternate = path == "round_robin"
        self._count = 0
        self._queue: list[Turn] = []

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def arrive(self, now: float, turn: Turn) -> None:
        self._queue.append(turn)

    def place(self, now: float) -> list[Turn]:
        placed, self._queue = self._queue, []
        for turn in placed:
            turn.prefill = self._count % self._p
            turn.decode = self._p + self._count % self._d
            # Once round the engines: in step with them, an engine would always have one path.
            away = self._alternate and self._count // max(self._p, self._d) % 2
            turn.hit_decode = turn.hit if away else 0
            self._count += 1
        return placed

    def loaded(self, now: float, turn: Turn) -> None:
        pass

    def computed(self, now: float, turn: Turn) -> None:
        pass

    def finished(self, now: float, turn: Turn) -> None:
        pass


class ByTokens:
    """The paper's rules for one group of each side: alpha, beta, Z, the shorter queue reads."""

    def __init__(
        self, prefill_gpus: int, decode_gpus: int, per_node: int, alpha: float, beta: float
    ) -> None:
        self._p, self._n, self._g = prefill_gpus, prefill_gpus + decode_gpus, per_node
        self._alpha, self._beta = alpha, beta
        self._tok, self._seq = [0] * self._n, [0] * self._n
        self._reading = [0] * (self._n // per_node)
        self._queue: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def arrive(self, now: float, turn: Turn) -> None:
        self._queue.append(turn)

    def place(self, now: float) -> list[Turn]:
        placed: list[Turn] = []
        queue, tok, g, p = self._queue, self._tok, self._g, self._p
        decodes = range(p, self._n)
        while queue:
            turn = queue[0]
            free = [e for e in range(p) if tok[e] <= self._beta]
            if not free:
                break
            turn.prefill = min(free, key=lambda e: (self._reading[e // g] > self._alpha, tok[e]))
            z = 1.05 * (turn.prompt + sum(tok[p:])) / len(decodes)
            low = [e for e in decodes if tok[e] + turn.prompt <= z]
            turn.decode = (
                min(low, key=lambda e: self._seq[e]) if low else min(decodes, key=tok.__getitem__)
            )
            nodes = turn.prefill // g, turn.decode // g
            away = self._reading[nodes[1]] < self._reading[nodes[0]]
            turn.hit_decode = turn.hit if away else 0
            self._reading[nodes[away]] += turn.hit
            tok[turn.prefill] += turn.prompt
            tok[turn.decode] += turn.prompt
            self._seq[turn.decode] += 1
            placed.append(queue.popleft())
        return placed

    def loaded(self, now: float, turn: Turn) -> None:
        self._reading[(turn.decode if turn.hit_decode else turn.prefill) // self._g] -= turn.hit

    def computed(self, now: float, turn: Turn) -> None:
        self._tok[turn.prefill] -= turn.prompt

    def finished(self, now: float, turn: Turn) -> None:
        self._tok[turn.decode] -= turn.hit + turn.new
        self._seq[turn.decode] -= 1
