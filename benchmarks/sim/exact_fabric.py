"""The networks of a small cluster exactly: every flow over all its links, max-min fair.

Per node a storage NIC (each direction) and DRAM (both directions summed), per GPU a compute NIC
(each direction); the store where it has a rate. What a forward moves has the forward's length as
its demand, and the forward waits for the last of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.sim.constants import Constants
from benchmarks.sim.fabric import Fabric, Transfer
from benchmarks.sim.loop import Action, Loop, Phase
from benchmarks.sim.maxmin import Network


class ExactFabric(Fabric):
    def __init__(self, loop: Loop, nodes: int, constants: Constants) -> None:
        super().__init__(nodes, constants)
        self._loop = loop
        gpus = len(self.read)
        kinds = [
            ("storage NIC {}", nodes, constants.snic_bytes_per_s),
            ("storage NIC {}, writes", nodes, constants.snic_bytes_per_s),
            ("DRAM {}", nodes, constants.dram_bytes_per_s),
            ("NIC {}, reads", gpus, constants.cnic_bytes_per_s),
            ("NIC {}, writes", gpus, constants.cnic_bytes_per_s),
        ]
        if constants.store_bytes_per_s:
            kinds.append(("store", 1, constants.store_bytes_per_s))
        names: list[str] = []
        rates: list[float] = []
        starts: list[int] = []
        for name, count, rate in kinds:
            starts.append(len(names))
            names += [name.format(i) for i in range(count)]
            rates += [rate] * count
        self._snic, self._saves, self._dram, self._reads, self._writes = starts[:5]
        self._store = starts[5:]
        self.network = Network(loop, names, rates)
        self._nodes = nodes
        self._busy_s = [0.0] * nodes
        self._loads = [0] * nodes
        self._since = [0.0] * nodes

    def load(self, now: float, node: int, size: float, done: Action, argument: Any) -> None:
        super().load(now, node, size, done, argument)
        if not self._loads[node]:
            self._since[node] = now
        self._loads[node] += 1
        links = [self._snic + node, self._dram + node, *self._store]
        self.network.start(now, links, size, self._load_ended, (node, done, argument))

    def _load_ended(self, now: float, load: tuple[int, Action, Any]) -> None:
        node, done, argument = load
        self._loads[node] -= 1
        if not self._loads[node]:
            self._busy_s[node] += now - self._since[node]
        done(now, argument)

    def to_gpu(self, now: float, gpu: int, size: float, done: Action, argument: Any) -> None:
        super().to_gpu(now, gpu, size, done, argument)
        self.network.start(now, self._looped(gpu), size, done, argument)

    def to_dram(self, now: float, gpu: int, size: float) -> None:
        super().to_dram(now, gpu, size)
        self.network.start(now, self._looped(gpu), size, None)

    def save(self, now: float, gpu: int, size: float) -> None:
        super().save(now, gpu, size)
        node = gpu // self.gpus_per_node
        self.network.start(now, self._looped(gpu), size, self._save, (node, size))

    def _save(self, now: float, what: tuple[int, float]) -> None:
        node, size = what
        self.network.start(now, [self._saves + node, self._dram + node, *self._store], size, None)

    def hand_over(
        self, now: float, source: int, target: int, size: float, done: Action, argument: Any
    ) -> None:
        super().hand_over(now, source, target, size, done, argument)
        self.network.start(now, self._across(source, target), size, done, argument)

    def forward(
        self,
        now: float,
        transfers: Sequence[Transfer],
        seconds: float,
        done: Action,
        argument: Any,
    ) -> None:
        super().forward(now, transfers, seconds, done, argument)
        flows: dict[tuple[int, ...], float] = {}
        for p, d, own, pulled, sent in transfers:
            for links, size in (
                (self._looped(p), own),
                (self._pulled(p, d), pulled),
                (self._across(p, d), sent),
            ):
                if size:
                    flows[links] = flows.get(links, 0.0) + size
        waits = All(len(flows) + 1, done)
        self._loop.at(now + seconds, Phase.FORWARD, waits, argument)
        for links, size in flows.items():
            demand = size / seconds if seconds > 0 else float("inf")
            self.network.start(now, links, size, waits, argument, demand)

    def _looped(self, gpu: int) -> tuple[int, ...]:
        dram = self._dram + gpu // self.gpus_per_node
        return self._reads + gpu, self._writes + gpu, dram

    def _pulled(self, prefill: int, decode: int) -> tuple[int, ...]:
        dram = self._dram + decode // self.gpus_per_node
        return self._reads + decode, self._writes + prefill, dram

    def _across(self, prefill: int, decode: int) -> tuple[int, ...]:
        dram = self._dram + decode // self.gpus_per_node
        return self._reads + prefill, self._writes + decode, dram

    def storage_served(self, now: float) -> list[float]:
        self.network.settle(now)
        return [float(x) for x in self.network.carried[self._snic : self._snic + self._nodes]]

    def storage_busy_s(self, now: float) -> list[float]:
        return [
            busy + (now - since if loads else 0.0)
            for busy, since, loads in zip(self._busy_s, self._since, self._loads, strict=True)
        ]


class All:
    """Runs an action when it is called for the n-th time."""

    __slots__ = ("_action", "_left")

    def __init__(self, n: int, action: Action) -> None:
        self._left = n
        self._action = action

    def __call__(self, now: float, argument: Any) -> None:
        self._left -= 1
        if not self._left:
            self._action(now, argument)
