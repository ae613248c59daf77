"""What is compared: topologies and arms, and which arms can share running engines. Pure.

An arm is a way to load the KV of a prompt. What differs between arms is named here and nowhere
else: the engines' variant (flags and hooks), the router's split policy, and whether the storage
NICs are shaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from agent_runtime.config import SplitPolicy
from benchmarks.rig.net import Node
from dualpath_sglang.contract.errors import ConfigError

Variant = Literal["prefill_store", "both_stores", "no_store", "second_path"]
"""Engines that can serve the same arms.

prefill_store: upstream SGLang, storage on P only. both_stores: upstream SGLang, storage and cache
tiers on P and on D, each reading for itself. no_store: upstream SGLang without storage.
second_path: DualPath's hooks on both.
"""


@dataclass(frozen=True)
class Arm:
    """`split`: the router's split policy (none: no plans). `shaped`: storage NICs have a rate."""

    key: str
    variant: Variant
    split: SplitPolicy = "none"
    shaped: bool = True
    meaning: str = ""

    @property
    def ours(self) -> bool:
        return self.variant == "second_path"

    @property
    def hooks(self) -> Literal["all", "cpu"]:
        return "all" if self.ours else "cpu"


ARMS = {
    arm.key: arm
    for arm in (
        Arm("upstream_prefill_only", "prefill_store", meaning="upstream: P reads everything"),
        Arm("upstream_decode_hicache", "both_stores", meaning="upstream: P and D both read all"),
        Arm("prefill_path", "second_path", "prefill_path", meaning="P reads everything, once"),
        Arm("decode_path", "second_path", "decode_path", meaning="D reads, P pulls from D"),
        Arm("round_robin", "second_path", "round_robin", meaning="one path per turn, in turn"),
        Arm("shorter_queue", "second_path", "shorter_queue", meaning="the path with less to read"),
        Arm("split", "second_path", "split", meaning="both paths at once, split at k"),
        Arm("oracle", "prefill_store", shaped=False, meaning="upstream, storage NICs unshaped"),
        Arm("recompute", "no_store", meaning="upstream without a store: P computes everything"),
    )
}


@dataclass(frozen=True)
class Topology:
    """Prefill and decode engines, on the nodes from number `first` on."""

    key: str
    prefill: int
    decode: int
    first: int = 1

    @property
    def prefill_names(self) -> tuple[str, ...]:
        return tuple(f"p{i + self.first}" for i in range(self.prefill))

    @property
    def decode_names(self) -> tuple[str, ...]:
        return tuple(f"d{i + self.first}" for i in range(self.decode))

    @property
    def engine_names(self) -> tuple[str, ...]:
        return self.prefill_names + self.decode_names

    @property
    def limit(self) -> float:
        """Speed-up over reading on P alone when storage is the only bottleneck."""
        return (self.prefill + self.decode) / self.prefill


TOPOLOGIES = {
    t.key: t for t in (Topology("1P1D", 1, 1), Topology("1P2D", 1, 2), Topology("2P1D", 2, 1))
}
BESIDE = Topology("1P1D beside", 1, 1, first=2)
"""For a second set of engines beside 1P1D, so that runs of two variants can take turns."""

STORE, ROUTER = Node("store", 1), Node("router", 2)
ENGINE_NODES = {
    name: Node(name, number) for name, number in (("p1", 11), ("p2", 12), ("d1", 21), ("d2", 22))
}
ALL_NODES = (STORE, ROUTER, *ENGINE_NODES.values())
"""One lab serves every topology: nodes that a topology leaves out are idle."""


@dataclass(frozen=True)
class Job:
    """One measured run; `index` counts the runs of its arm from 0."""

    topology: str
    arm: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.topology}/{self.arm}/{self.index}"


def named(kind: str, key: str, known: Sequence[str]) -> str:
    """`key` if it is known; else a ConfigError that lists what there is."""
    if key not in known:
        raise ConfigError(f"unknown {kind} {key!r}: use one of {', '.join(known)}", field=kind)
    return key


def jobs(topologies: Sequence[str], arms: Sequence[str], runs: dict[str, int]) -> list[Job]:
    """All runs in the order that starts engines least often.

    Within one set of engines the runs go round the arms, so that a drift of the machine meets
    every arm alike. `runs` has the number of runs by arm.
    """
    variants = [ARMS[arm].variant for arm in arms]
    order = sorted(arms, key=lambda arm: variants.index(ARMS[arm].variant))
    planned = []
    for topology in topologies:
        for _, group in groupby(order, key=lambda arm: ARMS[arm].variant):
            together = list(group)
            for index in range(max(runs[arm] for arm in together)):
                planned += [Job(topology, a, index) for a in together if index < runs[a]]
    return planned
