"""The networks of a cluster: what moves over which links, and when it has arrived.

    load        store → storage NIC → DRAM
    to_gpu      DRAM → compute NIC, looped back → HBM                       to_dram the same back
    hand_over   HBM → compute NIC of P → compute NIC of D → DRAM
    save        HBM → compute NIC → DRAM → storage NIC → store
    forward     what a layer-wise forward moves while it computes

A compute NIC reads from its node's memory and writes to it; copies within a node loop back through
it and count both ways (paper, 5). `Fabric` counts bytes; how links are shared is its children's
matter: `SharedFabric` here looks at them one by one, `exact_fabric` at all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.sim.constants import Constants
from benchmarks.sim.loop import Action, Loop, Phase
from benchmarks.sim.shared_link import SharedLink

MIN_LEFT = 0.1
"""Of a compute NIC's rate: what a forward may count on, however much other forwards reserve."""


class Transfer(NamedTuple):
    """Bytes that one turn's part of a forward moves between two GPUs' sides.

    own: from P's DRAM into its HBM. pulled: from D's DRAM into P's HBM. sent: from P's HBM into
    D's DRAM.
    """

    prefill: int
    decode: int
    own: float
    pulled: float
    sent: float


class Fabric:
    """GPUs are numbered through: node n has GPUs n*g to n*g + g - 1."""

    def __init__(self, nodes: int, constants: Constants) -> None:
        self.gpus_per_node = int(constants.gpus_per_node)
        self.cnic_rate = constants.cnic_bytes_per_s
        gpus = nodes * self.gpus_per_node
        self.read, self.written = [0.0] * gpus, [0.0] * gpus
        """Bytes that each compute NIC was given to read from its node's memory, and to write."""
        self.dram = [0.0] * nodes
        """Bytes into and out of a node's DRAM."""
        self.loaded, self.saved = [0.0] * nodes, [0.0] * nodes
        """Bytes that each storage NIC was given."""

    def load(self, now: float, node: int, size: float, done: Action, argument: Any) -> None:
        self.loaded[node] += size
        self.dram[node] += size

    def to_gpu(self, now: float, gpu: int, size: float, done: Action, argument: Any) -> None:
        self._loop_back(gpu, size)

    def to_dram(self, now: float, gpu: int, size: float) -> None:
        self._loop_back(gpu, size)

    def save(self, now: float, gpu: int, size: float) -> None:
        """Nobody waits for it."""
        self._loop_back(gpu, size)
        node = gpu // self.gpus_per_node
        self.dram[node] += size
        self.saved[node] += size

    def hand_over(
        self, now: float, source: int, target: int, size: float, done: Action, argument: Any
    ) -> None:
        self.read[source] += size
        self.written[target] += size
        self.dram[target // self.gpus_per_node] += size

    def forward(
        self,
        now: float,
        transfers: Sequence[Transfer],
        seconds: float,
        done: Action,
        argument: Any,
    ) -> None:
        """`done` when `seconds` have passed and everything has moved."""
        read, written, dram, g = self.read, self.written, self.dram, self.gpus_per_node
        for p, d, own, pulled, sent in transfers:
            read[p] += own + sent
            written[p] += own + pulled
            read[d] += pulled
            written[d] += sent
            dram[p // g] += own
            dram[d // g] += pulled + sent

    def copied(self, prefill: int, decode: int, into: float, over: float) -> None:
        """Counts copies that an engine waits for: `into` P's HBM, `over` to D's DRAM."""
        self._loop_back(prefill, into)
        self.read[prefill] += over
        self.written[decode] += over
        self.dram[decode // self.gpus_per_node] += over

    def storage_served(self, now: float) -> list[float]:
        """Bytes that each storage NIC has read from the store up to `now`."""
        raise NotImplementedError

    def storage_busy_s(self, now: float) -> list[float]:
        """Time with a read under way, up to `now`, of each storage NIC."""
        raise NotImplementedError

    def _loop_back(self, gpu: int, size: float) -> None:
        self.read[gpu] += size
        self.written[gpu] += size
        self.dram[gpu // self.gpus_per_node] += size


class SharedFabric(Fabric):
    """Every storage NIC and every compute NIC shares its rate among its flows.

    The approximation: a flow over two links is served by each as if that were the only one, and
    ends when both have served it; what a forward moves is spread evenly over it and reserved, in
    the fuller direction of each NIC. DRAM is counted, not shared, and so is the store where it has
    no rate. `benchmarks.sim.links` measures what that is off by.
    """

    def __init__(self, loop: Loop, nodes: int, constants: Constants) -> None:
        super().__init__(nodes, constants)
        self._loop = loop
        storage, compute = constants.snic_bytes_per_s, constants.cnic_bytes_per_s
        self.storage = [SharedLink(loop, f"storage NIC {n}", storage) for n in range(nodes)]
        self.saves = [SharedLink(loop, f"storage NIC {n}, writes", storage) for n in range(nodes)]
        self.compute = [SharedLink(loop, f"NIC {i}", compute) for i in range(len(self.read))]
        rate = constants.store_bytes_per_s
        self.store = SharedLink(loop, "store", rate) if rate else None

    def load(self, now: float, node: int, size: float, done: Action, argument: Any) -> None:
        super().load(now, node, size, done, argument)
        if self.store is not None:
            done = Both(done)
            self.store.start(now, size, done, argument)
        self.storage[node].start(now, size, done, argument)

    def to_gpu(self, now: float, gpu: int, size: float, done: Action, argument: Any) -> None:
        super().to_gpu(now, gpu, size, done, argument)
        self.compute[gpu].start(now, size, done, argument)

    def to_dram(self, now: float, gpu: int, size: float) -> None:
        super().to_dram(now, gpu, size)
        self.compute[gpu].start(now, size, None)

    def save(self, now: float, gpu: int, size: float) -> None:
        super().save(now, gpu, size)
        self.saves[gpu // self.gpus_per_node].start(now, size, None)

    def hand_over(
        self, now: float, source: int, target: int, size: float, done: Action, argument: Any
    ) -> None:
        super().hand_over(now, source, target, size, done, argument)
        both = Both(done)
        self.compute[source].start(now, size, both, argument)
        self.compute[target].start(now, size, both, argument)

    def forward(
        self,
        now: float,
        transfers: Sequence[Transfer],
        seconds: float,
        done: Action,
        argument: Any,
    ) -> None:
        super().forward(now, transfers, seconds, done, argument)
        read: dict[int, float] = {}
        written: dict[int, float] = {}
        for p, d, own, pulled, sent in transfers:
            read[p] = read.get(p, 0.0) + own + sent
            written[p] = written.get(p, 0.0) + own + pulled
            read[d] = read.get(d, 0.0) + pulled
            written[d] = written.get(d, 0.0) + sent
        compute, rate, least = self.compute, self.cnic_rate, MIN_LEFT * self.cnic_rate
        sizes = []
        for gpu, size in read.items():
            if written[gpu] > size:
                size = written[gpu]
            left = rate - compute[gpu].reserved
            if left < least:
                left = least
            if size > seconds * left:
                seconds = size / left
            sizes.append((gpu, size))
        taken = [(compute[gpu], size / seconds) for gpu, size in sizes] if seconds > 0 else []
        for link, part in taken:
            link.reserve(now, part)
        self._loop.at(now + seconds, Phase.FORWARD, self._forward_ended, (taken, done, argument))

    @staticmethod
    def _forward_ended(
        now: float, forward: tuple[list[tuple[SharedLink, float]], Action, Any]
    ) -> None:
        taken, done, argument = forward
        for link, part in taken:
            link.reserve(now, -part)
        done(now, argument)

    def storage_served(self, now: float) -> list[float]:
        for link in self.storage:
            link.settle(now)
        return [link.served for link in self.storage]

    def storage_busy_s(self, now: float) -> list[float]:
        for link in self.storage:
            link.settle(now)
        return [link.busy_s for link in self.storage]


class Both:
    """Runs an action when it is called for the second time."""

    __slots__ = ("_action", "_first")

    def __init__(self, action: Action) -> None:
        self._action = action
        self._first = True

    def __call__(self, now: float, argument: Any) -> None:
        if self._first:
            self._first = False
        else:
            self._action(now, argument)
