"""A group of decode GPUs that step together.

A step takes as long as the fullest GPU needs, and every running turn gains one token by it. So one
counter per group says how many tokens have been made: a turn that joins at c with n tokens to make
ends at c + n, whoever joins or leaves beside it. Only joins and leaves are events.

    accepted (KV in the node's DRAM) ── waits for HBM ── copied in ── runs ── finished
                                              ▲                        │ HBM is full
                                              └──── copied out ◀───────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from benchmarks.sim.cost import DecodeCost
from benchmarks.sim.fabric import Fabric
from benchmarks.sim.loop import Loop, Phase
from benchmarks.sim.turn import Turn

NEVER = float("inf")
SLACK_TOKENS = 1e-6
Happened = Callable[[float, Turn], None]


class DecodeGroup:
    """gpus: their numbers. room: tokens of KV that fit one GPU. local: copies take no time.
    joined: a turn's KV is in HBM. finished: it has made all its tokens."""

    def __init__(
        self,
        loop: Loop,
        fabric: Fabric,
        cost: DecodeCost,
        gpus: range,
        room: float,
        token_bytes: float,
        local: bool,
        joined: Happened,
        finished: Happened,
    ) -> None:
        self.gpus = gpus
        self.step_s = cost.base_s
        self.preempted = 0
        self.tokens = 0
        """Made by turns that have finished."""
        self._loop, self._fabric, self._cost = loop, fabric, cost
        self._room, self._token_bytes, self._local = room, token_bytes, local
        self._joined, self._finished = joined, finished
        self._running: list[list[Turn]] = [[] for _ in gpus]
        self._waiting: list[deque[Turn]] = [deque() for _ in gpus]
        self._copied = [0] * len(gpus)
        """Tokens on their way into each GPU."""
        self._base = [0.0] * len(gpus)
        """Tokens in each GPU, less what its running turns gain with the counter."""
        self._at_end = [0] * len(gpus)
        """Tokens in each GPU when all its turns have made all their tokens."""
        self._reading = [0.0] * len(gpus)
        """Seconds that each GPU's turns add to a step."""
        self._slowest = 0.0
        self._counter = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, Turn | None, int]] = []
        self._sequence = 0
        self._armed = NEVER

    def accept(self, now: float, turn: Turn) -> None:
        """A turn whose prompt's KV is in the DRAM of its decode GPU's node."""
        gpu = turn.decode - self.gpus.start
        self._waiting[gpu].append(turn)
        self._admit(now, gpu)

    def held(self, gpu: int) -> float:
        """Tokens of KV in one GPU and on their way into it, at the last change."""
        return self._base[gpu] + len(self._running[gpu]) * self._counter + self._copied[gpu]

    @property
    def running(self) -> int:
        return sum(map(len, self._running))

    def _admit(self, now: float, gpu: int) -> None:
        waiting = self._waiting[gpu]
        if not waiting:
            return
        self._advance(now)
        while waiting:
            turn = waiting[0]
            if not self._fits(gpu, turn):
                return
            waiting.popleft()
            self._copied[gpu] += turn.prompt
            self._at_end[gpu] += turn.prompt + turn.out
            if self._local:
                self._join(now, turn)
            else:
                size = turn.prompt * self._token_bytes
                self._fabric.to_gpu(now, turn.decode, size, self._join, turn)

    def _fits(self, gpu: int, turn: Turn) -> bool:
        """Its KV fits now; one that was preempted, to its end. Alone, every turn fits."""
        held = self.held(gpu)
        if turn.out < turn.wanted:
            held, need = float(self._at_end[gpu]), turn.prompt + turn.out
        else:
            need = turn.prompt + 1
        return held <= SLACK_TOKENS or held + need <= self._room

    def _join(self, now: float, turn: Turn) -> None:
        self._advance(now)
        gpu = turn.decode - self.gpus.start
        running = self._running[gpu]
        self._copied[gpu] -= turn.prompt
        self._base[gpu] += turn.prompt - self._counter
        running.append(turn)
        reading = self._reading[gpu] + self._cost.reading_s(turn.prompt + 0.5 * turn.out)
        self._reading[gpu] = reading
        if reading > self._slowest:
            self._slowest = reading
            self.step_s = self._cost.base_s + reading
        self._sequence += 1
        turn.run = self._sequence
        turn.started = self._counter
        heappush(self._ends, (self._counter + turn.out - 1, turn.run, turn, gpu))
        if self._at_end[gpu] > self._room:
            self._watch(gpu)
        self._joined(now, turn)
        self._arm(now)

    def _watch(self, gpu: int) -> None:
        """Looks again when the GPU's HBM will be full."""
        left = max(0.0, self._room - self.held(gpu))
        full = self._counter + left / max(1, len(self._running[gpu]))
        self._sequence += 1
        heappush(self._ends, (full, self._sequence, None, gpu))

    def _advance(self, now: float) -> None:
        if self._ends:
            self._counter += (now - self._since) / self.step_s
        self._since = now

    def _arm(self, now: float) -> None:
        """Sees to an event at the first end. One that is armed for earlier arms itself anew."""
        due = now + max(0.0, self._ends[0][0] - self._counter) * self.step_s
        if due < self._armed:
            self._armed = due
            self._loop.at(due, Phase.FORWARD, self._fire, due)

    def _fire(self, now: float, due: float) -> None:
        if due != self._armed:
            return  # an earlier event was armed after this one
        self._armed = NEVER
        self._advance(now)
        ends, ended = self._ends, []
        while ends and ends[0][0] <= self._counter + SLACK_TOKENS:
            _, run, turn, gpu = heappop(ends)
            if turn is None:
                self._make_room(now, gpu)
            elif turn.run == run:
                self._leave(turn, turn.out)
                ended.append(turn)
        if ends:
            self._arm(now)
        for turn in ended:
            self.tokens += turn.out
            self._admit(now, turn.decode - self.gpus.start)
            self._finished(now, turn)

    def _leave(self, turn: Turn, made: int) -> None:
        """Takes a running turn with `made` of its tokens out of its GPU."""
        gpu = turn.decode - self.gpus.start
        running = self._running[gpu]
        running.remove(turn)
        self._at_end[gpu] -= turn.prompt + turn.out
        self._base[gpu] -= turn.prompt - turn.started
        before = self._reading[gpu]
        self._reading[gpu] = before - self._cost.reading_s(turn.prompt + 0.5 * turn.out)
        if not running:
            self._reading[gpu] = self._base[gpu] = 0.0
        if before >= self._slowest:
            self._slowest = max(self._reading)
            self.step_s = self._cost.base_s + self._slowest

    def _make_room(self, now: float, gpu: int) -> None:
        """Preempts the turns that joined last until the GPU's HBM holds the others."""
        running = self._running[gpu]
        while len(running) > 1 and self.held(gpu) >= self._room - 0.5:
            turn = running[-1]
            made = min(turn.out - 2, int(self._counter - turn.started))
            self._leave(turn, made)
            turn.run = 0
            turn.prompt += made
            turn.out -= made
            self.tokens += made
            self.preempted += 1
            if not self._local:
                self._fabric.to_dram(now, turn.decode, turn.prompt * self._token_bytes)
            self._waiting[gpu].appendleft(turn)
        if self._at_end[gpu] > self._room and running:
            self._watch(gpu)
