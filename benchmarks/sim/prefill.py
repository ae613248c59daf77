"""A group of prefill GPUs that run their forwards together.

    placed ── waits for DRAM ── read (storage NICs) ── ready ── forward ── handed over to decode

In a forward every GPU has a batch of its own, and all wait for the slowest (DP attention). A
forward starts as soon as any GPU of the group has a ready turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

from benchmarks.sim.constants import Constants
from benchmarks.sim.cost import PrefillCost
from benchmarks.sim.decode import Happened
from benchmarks.sim.fabric import Fabric, Transfer
from benchmarks.sim.loop import Loop, Phase
from benchmarks.sim.memory import Room
from benchmarks.sim.models import Model
from benchmarks.sim.packing import Limits, Part, pack
from benchmarks.sim.systems import Blocking, Quota, System
from benchmarks.sim.turn import Turn

NEVER = float("inf")


class PrefillGroup:
    """gpus: their numbers. room: tokens of KV that fit one GPU. buffers: DRAM of every node, null:
    without end. loaded: a turn's KV has been read. computed: its first token is there.
    handed_over: the decode side has its KV."""

    def __init__(
        self,
        loop: Loop,
        fabric: Fabric,
        cost: PrefillCost,
        system: System,
        model: Model,
        constants: Constants,
        gpus: range,
        room: float,
        buffers: Sequence[Room] | None,
        loaded: Happened,
        computed: Happened,
        handed_over: Happened,
    ) -> None:
        self.gpus = gpus
        self.forwards = 0
        self.busy_s = 0.0
        self.tokens = 0
        self.attention_max_s = self.attention_mean_s = 0.0
        """Summed over forwards: of the slowest GPU, and of all on average."""
        self._loop, self._fabric, self._cost, self._system = loop, fabric, cost, system
        self._token_bytes = model.token_bytes
        self._buffers = buffers
        self._on_loaded, self._on_computed, self._handed_over = loaded, computed, handed_over
        quota = {
            Quota.NONE: NEVER,
            Quota.LAYER: constants.quota_s * model.layers,
            Quota.FORWARD: constants.quota_s,
        }[system.quota]
        # Layer-wise, HBM holds the layer that is computed and the one that is loaded meanwhile.
        held = room * model.layers / 2 if system.layerwise else room
        self._limits = Limits(quota, int(constants.max_forward_tokens), held)
        self._rounds = system.blocking is Blocking.ROUNDS
        self._overlaps = system.layerwise or system.local
        self._copies = system.blocking is Blocking.COPIES and not self._overlaps
        self._placed: list[deque[Turn]] = [deque() for _ in gpus]
        self._ready: list[deque[Turn]] = [deque() for _ in gpus]
        self._busy = self._asked = False
        self._reading = 0

    def place(self, now: float, turn: Turn) -> None:
        self._placed[turn.prefill - self.gpus.start].append(turn)
        self.ask(now)

    def ask(self, now: float) -> None:
        """Looks at the queues when everything else at this time has happened."""
        if not self._asked:
            self._asked = True
            self._loop.at(now, Phase.START, self._look)

    @property
    def idle(self) -> bool:
        return not (self._busy or self._reading or any(self._placed) or any(self._ready))

    def _look(self, now: float, _: Any) -> None:
        self._asked = False
        if not self._rounds or not (self._busy or self._reading or any(self._ready)):
            self._fetch(now)
        if not self._busy and not (self._rounds and self._reading):
            self._start(now)

    def _fetch(self, now: float) -> None:
        """Starts reads in the order of placement. No turn overtakes one of its GPU, nor one that
        waits for the same DRAM."""
        if self._buffers is None:
            for placed in self._placed:
                while placed:
                    self._read(now, placed.popleft())
            return
        heads = [(placed[0].order, gpu) for gpu, placed in enumerate(self._placed) if placed]
        heapify(heads)
        full: set[int] = set()
        while heads:
            placed = self._placed[heads[0][1]]
            if self._take_buffers(placed[0], full):
                self._read(now, placed.popleft())
                if placed:
                    heapreplace(heads, (placed[0].order, heads[0][1]))
                    continue
            heappop(heads)

    def _take_buffers(self, turn: Turn, full: set[int]) -> bool:
        """DRAM for what P reads on its node, and for the whole prompt on D's."""
        assert self._buffers is not None
        g = self._fabric.gpus_per_node
        needs = ((turn.prefill // g, turn.hit - turn.hit_decode), (turn.decode // g, turn.prompt))
        for node, tokens in needs:
            if tokens and (node in full or not self._buffers[node].has(tokens)):
                full.add(node)
                self._buffers[node].wait(self.ask)
                return False
        for node, tokens in needs:
            self._buffers[node].take(tokens)
        return True

    def _read(self, now: float, turn: Turn) -> None:
        self._reading += 1
        own = turn.hit - turn.hit_decode
        turn.reads = (own > 0) + (turn.hit_decode > 0)
        if self._system.local or not turn.reads:
            turn.reads = 1
            self._part_read(now, turn)
            return
        g, size = self._fabric.gpus_per_node, self._token_bytes
        if own:
            self._fabric.load(now, turn.prefill // g, own * size, self._part_read, turn)
        if turn.hit_decode:
            away = turn.hit_decode * size
            self._fabric.load(now, turn.decode // g, away, self._part_read, turn)

    def _part_read(self, now: float, turn: Turn) -> None:
        turn.reads -= 1
        if turn.reads:
            return
        self._on_loaded(now, turn)
        if self._overlaps or self._copies or not turn.hit:
            self._become_ready(now, turn)
        else:
            size = turn.hit * self._token_bytes
            self._fabric.to_gpu(now, turn.prefill, size, self._become_ready, turn)

    def _become_ready(self, now: float, turn: Turn) -> None:
        self._reading -= 1
        turn.loaded = now
        self._ready[turn.prefill - self.gpus.start].append(turn)
        self.ask(now)

    def _start(self, now: float) -> None:
        """Runs a forward, if any GPU has something to compute."""
        batch: list[Part] = []
        longest = attention = 0.0
        most = total = 0
        for ready in self._ready:
            if ready:
                seconds, tokens = pack(ready, batch, self._cost, self._limits)
                longest, most = max(longest, seconds), max(most, tokens)
                attention += seconds
                total += tokens
        if not batch:
            return
        self._busy = True
        self.forwards += 1
        self.tokens += total
        self.attention_max_s += longest
        self.attention_mean_s += attention / len(self.gpus)
        seconds = self._cost.forward_s(longest, most, total)
        if self._copies:
            seconds += self._copying_s(batch)
        moved = self._transfers(batch) if self._system.layerwise and not self._system.local else []
        self._fabric.forward(now, moved, seconds, self._ended, (now, batch))

    def _copying_s(self, batch: list[Part]) -> float:
        """Until the GPU with most to copy has copied its hits in and its whole prompts out."""
        moved: dict[int, int] = {}
        for turn, take in batch:
            before = turn.prompt - turn.left - take
            copied_in = turn.hit if before == turn.hit else 0
            copied_out = 0 if turn.left else turn.prompt
            moved[turn.prefill] = moved.get(turn.prefill, 0) + copied_in + copied_out
            size = self._token_bytes
            self._fabric.copied(turn.prefill, turn.decode, copied_in * size, copied_out * size)
        return max(moved.values()) * self._token_bytes / self._fabric.cnic_rate

    def _transfers(self, batch: list[Part]) -> list[Transfer]:
        """Per part: hits and earlier parts come to P for its attention, and D gets what it lacks,
        once."""
        size = self._token_bytes
        made = []
        for turn, take in batch:
            before, away = turn.prompt - turn.left - take, turn.hit_decode
            own = before - away
            sent = own + take if before == turn.hit else take
            made.append(Transfer(turn.prefill, turn.decode, own * size, away * size, sent * size))
        return made

    def _ended(self, now: float, forward: tuple[float, list[Part]]) -> None:
        began, batch = forward
        self._busy = False
        self.busy_s += now - began
        for turn, _ in batch:
            if turn.left:
                continue
            self._on_computed(now, turn)
            if self._overlaps or self._copies:
                self._release(now, turn)
            else:
                fabric, size = self._fabric, turn.prompt * self._token_bytes
                fabric.hand_over(now, turn.prefill, turn.decode, size, self._release, turn)
        self.ask(now)

    def _release(self, now: float, turn: Turn) -> None:
        if self._buffers is not None:
            node = turn.prefill // self._fabric.gpus_per_node
            self._buffers[node].give(now, turn.hit - turn.hit_decode)
        self._handed_over(now, turn)
