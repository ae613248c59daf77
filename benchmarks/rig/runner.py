"""Carries out jobs: fill the store once, then one measured run per job."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent_runtime.client import AsyncDualPathClient
from benchmarks.replay.driver import replay
from benchmarks.replay.plan import DriverOptions
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import Observed
from benchmarks.replay.router import CallFailed, Router
from benchmarks.replay.tokens import TokenSpace
from benchmarks.replay.trace import Session
from benchmarks.rig.arms import ARMS, TOPOLOGIES, Arm, Job, Topology
from benchmarks.rig.config import RigConfig
from benchmarks.rig.counters import EngineCounts, machine_busy_s, own_cpu_s
from benchmarks.rig.lab import Lab
from benchmarks.rig.machines import EngineSet, Machines, Show
from benchmarks.rig.measure import Counted, Pages
from benchmarks.rig.net import NodeBytes
from benchmarks.rig.runfile import arm_config, run_tree
from benchmarks.rig.workload import RigTokens, RigWorkload
from dualpath_sglang.contract.errors import DualPathError

FILL_CONCURRENCY = 4


@dataclass(frozen=True)
class Reading:
    """All counters at one moment."""

    at_s: float
    busy_s: float
    nodes: dict[str, NodeBytes]
    engines: dict[str, EngineCounts]
    cpu_s: dict[str, float]


class RunFailed(DualPathError):
    """A run has no result; the other jobs go on."""

    kind = "run_failed"


class Runner:
    """Everything a job needs. `space`: the token ids that prompts may have."""

    def __init__(
        self,
        config: RigConfig,
        lab: Lab,
        machines: Machines,
        workload: RigWorkload,
        space: TokenSpace,
        show: Show,
    ) -> None:
        self.config = config
        self.machines = machines
        self.workload = workload
        self.pages = Pages(config.page_size, config.model.kv_bytes_per_token)
        self._lab = lab
        self._space = space
        self.show = show
        self._filled = False

    # --- steps --------------------------------------------------------------------------------

    def prepare(self, topology: Topology, arm: Arm, *, beside: bool = False) -> EngineSet:
        """Engines and router of an arm, the store filled, no NIC shaped."""
        engines = self.machines.engines(topology, arm.variant, beside=beside)
        self.shape(topology, 0)
        if not self._filled and arm.variant != "no_store":
            self._fill(engines.url(arm))
        return engines

    def shape(self, topology: Topology, bits_per_s: int) -> None:
        """The rate of the engines' storage NICs; 0: none."""
        self._lab.shape(topology.engine_names, bits_per_s)

    def drive(
        self, sessions: Sequence[Session], label: str, url: str, most: int | None = None
    ) -> Observed:
        """Replay sessions, each from its first turn, with new tokens that the store has not."""
        tokens = self.tokens(f"{label}/{time.time_ns()}")
        options = DriverOptions(url, concurrency=most, turn_timeout_s=self.config.turn_timeout_s)
        with Progress(label, sum(len(s.turns) for s in sessions)) as progress:
            return asyncio.run(replay(sessions, tokens, options, progress))

    def tokens(self, run: str) -> RigTokens:
        return RigTokens(self._space, self.workload, run)

    def flush(self, url: str) -> None:
        """Empty the caches of all engines; the store keeps its pages."""
        asyncio.run(_flush(url))

    # --- one job ------------------------------------------------------------------------------

    def run(self, job: Job) -> dict[str, Any]:
        """The result of one measured run. Raises DualPathError when there is none."""
        topology, arm = TOPOLOGIES[job.topology], ARMS[job.arm]
        engines = self.prepare(topology, arm)
        url = engines.url(arm)
        self.flush(url)
        self.shape(topology, self.config.nic_bits_per_s if arm.shaped else 0)
        before = self._read(engines)
        seen = self.drive([session.measured() for session in self.workload], job.name, url)
        counted = _difference(before, self._read(engines))
        self.shape(topology, 0)
        if arm.ours and not any(turn.pages for turn in seen.turns):
            raise RunFailed(f"{job.name}: no turn had a plan ({_reasons(seen)})")
        # What the run has written reaches the store before the next one starts.
        time.sleep(self.config.settle_s)
        config = arm_config(arm, self.config, self.workload, engines.stack.layout.components)
        return run_tree(job, self.config.digest, config, seen, counted, self.pages)

    def _read(self, engines: EngineSet) -> Reading:
        cpu_s = self.machines.store_cpu_s() | engines.cpu_s() | {"client": own_cpu_s()}
        now, busy = time.monotonic(), machine_busy_s()
        return Reading(now, busy, self._lab.counters(), engines.counts(), cpu_s)

    def _fill(self, url: str) -> None:
        """Bring every history into the store; nothing is timed."""
        self.show(f"filling the store with {self.workload.working_set} tokens of histories")
        sessions = [session.prefill() for session in self.workload]
        seen = self.drive(sessions, "fill", url, FILL_CONCURRENCY)
        failed = [session.error for session in seen.sessions if session.error]
        if failed:
            raise RunFailed(f"the store could not be filled: {failed[0]}")
        self.show(f"the store holds {self.machines.wait_until_stored()} objects")
        self._filled = True


def _difference(before: Reading, after: Reading) -> Counted:
    nodes = {name: node.since(before.nodes[name]) for name, node in after.nodes.items()}
    counts = {name: count.since(before.engines[name]) for name, count in after.engines.items()}
    cpu_s = {name: round(s - before.cpu_s.get(name, 0.0), 3) for name, s in after.cpu_s.items()}
    capacity = (after.at_s - before.at_s) * len(os.sched_getaffinity(0))
    return Counted(nodes, counts, cpu_s, after.busy_s - before.busy_s, capacity)


def _reasons(seen: Observed) -> str:
    return "; ".join(sorted({turn.reason or "no reason given" for turn in seen.turns}))


async def _flush(url: str) -> None:
    async with AsyncDualPathClient(url) as client:
        try:
            await Router(client).flush()
        except CallFailed as error:
            raise RunFailed(f"the caches could not be flushed: {error}") from error
