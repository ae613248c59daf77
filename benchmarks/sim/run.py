"""One simulation from its setting to its numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.sim.cluster import Cluster, Setting
from benchmarks.sim.trajectories import Trajectories

QUIET_SHARE = 0.2
"""Of the storage NICs' summed rate: windows below say nothing about balance."""
SLICE_S = 20.0
"""Simulated seconds between two reports of progress."""
Progress = Callable[[float, float], None]
"""Called with the share of turns that are done and the simulated time in seconds."""


@dataclass(frozen=True)
class Workload:
    """agents: which trajectory each replays. arrivals: when each begins; null: all at once."""

    name: str
    trajectories: Trajectories
    agents: Sequence[int]
    arrivals: Sequence[float] | None = None

    @property
    def turns(self) -> int:
        return self.trajectories.turns(self.agents)


@dataclass(frozen=True)
class Result:
    """Times in seconds. jct: until the last agent ended; jct_mean: of an agent. Shares of the time
    until then: prefill_busy of the prefill groups, storage_busy of each storage NIC. imbalance:
    attention of the slowest GPU over the mean. balance: mean over windows of the storage NICs'
    most bytes over their mean. cpu_s: of this simulation, not in it."""

    system: str
    workload: str
    jct: float
    jct_mean: float
    turns: int
    prompt_tokens: int
    hit_tokens: int
    new_tokens: int
    output_tokens: int
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    ttst_mean: float
    tpot_mean: float
    waited_mean: float
    read_mean: float
    prefill_mean: float
    prefill_busy: float
    forwards: int
    imbalance: float
    storage_busy: tuple[float, ...]
    storage_bytes: float
    balance: float
    preempted: int
    events: int
    cpu_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def simulate(setting: Setting, workload: Workload, progress: Progress | None = None) -> Result:
    """Runs until every agent has ended. Raises RuntimeError if something stands still."""
    cluster = Cluster(setting, workload.trajectories, workload.agents)
    began = time.process_time()
    cluster.start(workload.arrivals)
    turns = workload.turns
    while cluster.agents_left:
        before = cluster.loop.events
        cluster.loop.run(until=cluster.loop.now + SLICE_S)
        if cluster.loop.events == before and cluster.loop.idle:
            raise RuntimeError(f"{cluster.agents_left} agents wait and nothing happens any more")
        if progress is not None:
            progress(cluster.meter.turns / turns, cluster.loop.now)
    return result(cluster, workload.name, time.process_time() - began)


def result(cluster: Cluster, workload: str, cpu_s: float) -> Result:
    meter, fabric = cluster.meter, cluster.fabric
    end = max(meter.jct)
    ttft = sorted(meter.ttft)
    groups = cluster.prefill
    mean_attention = sum(group.attention_mean_s for group in groups)
    return Result(
        system=cluster.setting.system.name,
        workload=workload,
        jct=end,
        jct_mean=sum(meter.jct) / len(meter.jct),
        turns=meter.turns,
        prompt_tokens=meter.prompt_tokens,
        hit_tokens=meter.hit_tokens,
        new_tokens=meter.new_tokens,
        output_tokens=meter.output_tokens,
        ttft_mean=_mean(ttft),
        ttft_p50=ttft[len(ttft) // 2],
        ttft_p99=ttft[len(ttft) * 99 // 100],
        ttst_mean=_mean(meter.ttst),
        tpot_mean=_mean(meter.tpot),
        waited_mean=meter.waited_s / meter.turns,
        read_mean=meter.read_s / meter.turns,
        prefill_mean=meter.prefill_s / meter.turns,
        prefill_busy=sum(group.busy_s for group in groups) / len(groups) / end,
        forwards=sum(group.forwards for group in groups),
        imbalance=sum(group.attention_max_s for group in groups) / (mean_attention or 1.0),
        storage_busy=tuple(busy / end for busy in fabric.storage_busy_s(cluster.loop.now)),
        storage_bytes=sum(fabric.loaded),
        balance=balance(meter.stored, meter.window_s * cluster.setting.constants.snic_bytes_per_s),
        preempted=sum(group.preempted for group in cluster.decode),
        events=cluster.loop.events,
        cpu_s=cpu_s,
    )


def balance(windows: Sequence[Sequence[float]], full: float) -> float:
    """Mean over windows of the most over the mean; quiet windows are left out. full: bytes that
    one NIC can carry in a window. 0 without windows."""
    ratios = [
        max(window) * len(window) / sum(window)
        for window in windows
        if sum(window) > QUIET_SHARE * full * len(window)
    ]
    return sum(ratios) / len(ratios) if ratios else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
