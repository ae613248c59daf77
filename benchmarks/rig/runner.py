"""Carries out jobs: fill the store once, then one measured run per job, each with its own file."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from agent_runtime.stack.stack import RunningStack
from benchmarks.replay.driver import replay
from benchmarks.replay.plan import DriverOptions
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import Observed
from benchmarks.replay.router import CallFailed, Router
from benchmarks.replay.stats import summary
from benchmarks.replay.tokens import TokenSpace
from benchmarks.replay.trace import Session
from benchmarks.rig import measure
from benchmarks.rig.arms import ARMS, TOPOLOGIES, Arm, Job, Topology
from benchmarks.rig.config import RigConfig
from benchmarks.rig.counters import EngineCounts
from benchmarks.rig.lab import Lab
from benchmarks.rig.machines import Machines, Show
from benchmarks.rig.measure import Counted, Pages
from benchmarks.rig.net import NodeBytes
from benchmarks.rig.stacks import shown_flags
from benchmarks.rig.summary import RUN_SCHEMA
from benchmarks.rig.workload import RigTokens, RigWorkload
from dualpath_sglang.contract.errors import DualPathError

FILL_CONCURRENCY = 4
FLUSH_TRIES, FLUSH_PAUSE_S = 40, 0.5


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
        self.lab = lab
        self.machines = machines
        self.workload = workload
        self.space = space
        self.show = show
        self.pages = Pages(config.page_size, config.model.kv_bytes_per_token)
        self._filled = False

    # --- steps --------------------------------------------------------------------------------

    def prepare(self, topology: Topology, arm: Arm) -> tuple[RunningStack, str]:
        """Engines and router of an arm, the store filled; the engines and the router's URL."""
        engines = self.machines.engines(topology, arm.variant)
        url = self.machines.router(arm).router_url
        if not self._filled and arm.variant != "no_store":
            self._fill(topology, url)
        return engines, url

    def shape(self, topology: Topology, shaped: bool) -> None:
        rate = self.config.nic_bits_per_s if shaped else 0
        self.lab.shape(topology.engine_names, rate)

    def drive(
        self, sessions: Sequence[Session], run: str, url: str, label: str, most: int | None = None
    ) -> Observed:
        """Replay sessions, each from its first turn. `run` names the tokens that are new."""
        tokens = RigTokens(self.space, self.workload, run)
        options = DriverOptions(url, concurrency=most, turn_timeout_s=self.config.turn_timeout_s)
        with Progress(label, sum(len(s.turns) for s in sessions)) as progress:
            return asyncio.run(replay(sessions, tokens, options, progress))

    def flush(self, url: str) -> None:
        """Empty the caches of all engines; the store keeps its pages."""
        asyncio.run(_flush(url))

    def counted(self) -> tuple[dict[str, NodeBytes], dict[str, EngineCounts], dict[str, float]]:
        return self.lab.counters(), self.machines.counts(), self.machines.cpu_s()

    # --- one job ------------------------------------------------------------------------------

    def run(self, job: Job) -> dict[str, Any]:
        """The result of one measured run. Raises DualPathError when there is none."""
        topology, arm = TOPOLOGIES[job.topology], ARMS[job.arm]
        engines, url = self.prepare(topology, arm)
        self.flush(url)
        self.shape(topology, arm.shaped)
        before = self.counted()
        sessions = [session.measured() for session in self.workload]
        # New tokens are new in this run of the store, so that nothing is found by accident.
        seen = self.drive(sessions, f"{job.name}/{time.time_ns()}", url, job.name)
        after = self.counted()
        self.shape(topology, False)
        if arm.ours and not any(turn.pages for turn in seen.turns):
            raise RunFailed(f"{job.name}: no turn had a plan ({_reasons(seen)})")
        time.sleep(self.config.settle_s)
        counted = Counted(
            {name: after[0][name].since(before[0][name]) for name in after[0]},
            {name: after[1][name].since(before[1][name]) for name in after[1]},
            {name: round(after[2][name] - before[2].get(name, 0.0), 3) for name in after[2]},
        )
        return self._result(job, seen, counted, engines)

    def _result(
        self, job: Job, seen: Observed, counted: Counted, engines: RunningStack
    ) -> dict[str, Any]:
        topology, arm = TOPOLOGIES[job.topology], ARMS[job.arm]
        done = [turn for turn in seen.turns if turn.error is None]
        window = measure.window(seen.turns, seen.sessions)
        return {
            "schema": RUN_SCHEMA,
            **asdict(job),
            "digest": self.config.digest,
            "config": self._config(arm, engines),
            "turns_per_s": round(window.turns_per_s, 6),
            "window_s": round(window.end_s - window.start_s, 3),
            "window_turns": window.turns,
            "wall_s": round(seen.wall_s, 3),
            "jct_s": summary(session.jct_s for session in seen.sessions),
            "ttft_ms": summary(turn.ttft_ms for turn in done),
            "tpot_ms": summary(turn.tpot_ms for turn in done),
            "errors": sum(session.error is not None for session in seen.sessions),
            "completed_turns": len(done),
            "prompt_tokens": sum(turn.prompt_tokens for turn in done),
            "computed_tokens": sum((turn.prefill or {}).get("computed", 0) for turn in done),
            "hit_tokens": measure.by_tier([turn.prefill for turn in done]),
            "hit_tokens_decode": measure.by_tier([turn.decode for turn in done]),
            "from_storage": measure.from_storage(done),
            "planned_bytes": measure.planned_bytes(done, self.pages),
            "needed_bytes": measure.needed_bytes(done, self.pages),
            "fallbacks": _fallbacks(seen),
            "cpu_s": counted.cpu_s,
            **measure.byte_block(counted, topology.engine_names, self.pages, arm.ours),
            "turn_records": [asdict(turn) for turn in seen.turns],
            "session_records": [asdict(session) for session in seen.sessions],
        }

    def _config(self, arm: Arm, engines: RunningStack) -> dict[str, Any]:
        """What the rules compare; of engines, what they were really started with."""
        config = self.config
        parts = {part.name: part for part in engines.layout.components if part.kind == "engine"}
        prefill = next(part for part in parts.values() if part.role == "prefill")
        flags = shown_flags(prefill.command)
        policy = flags.get("hicache-storage-prefetch-policy", config.prefetch_policy)
        return {
            "hooks": prefill.env["DUALPATH_ENGINE_HOOKS"],
            "shaped": arm.shaped,
            "split": arm.split,
            "nic_bits_per_s": config.nic_bits_per_s,
            "model": asdict(config.model),
            "attention_backend": flags.get("attention-backend"),
            "prefill_pools": _pools(flags),
            "decode_pools": {
                "tokens": config.decode_pools.tokens,
                "host_tokens": config.decode_pools.host_tokens,
            },
            "prefetch_policy": policy,
            "page_size": config.page_size,
            "router": "agent_runtime, round robin over engines",
            "trace": self.workload.digest,
            "sessions": len(self.workload.sessions),
            "working_set": self.workload.working_set,
            "flags": {name: shown_flags(part.command) for name, part in parts.items()},
        }

    def _fill(self, topology: Topology, url: str) -> None:
        """Bring every history into the store; nothing is timed and no NIC is shaped."""
        self.shape(topology, False)
        self.show(f"filling the store with {self.workload.working_set} tokens of histories")
        sessions = [session.prefill() for session in self.workload]
        seen = self.drive(sessions, "fill", url, "fill", FILL_CONCURRENCY)
        failed = [session.error for session in seen.sessions if session.error]
        if failed:
            raise RunFailed(f"the store could not be filled: {failed[0]}")
        self.show(f"the store holds {self.machines.wait_until_stored()} objects")
        self._filled = True


def write_log(out: Path, line: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "rig.log", "a", encoding="utf-8") as log:
        log.write(line + "\n")


def _pools(flags: dict[str, str]) -> dict[str, int]:
    tokens = int(flags["max-total-tokens"])
    return {"tokens": tokens, "host_tokens": int(tokens * float(flags["hicache-ratio"]))}


def _fallbacks(seen: Observed) -> dict[str, int]:
    """Why plans were not followed, by engine role and reason."""
    found: Counter[str] = Counter()
    for turn in seen.turns:
        for role, load in (turn.load or {}).items():
            if load.get("fallback"):
                found[f"{role}: {load['fallback']}"] += 1
    return dict(found)


def _reasons(seen: Observed) -> str:
    return "; ".join(sorted({turn.reason or "no reason given" for turn in seen.turns}))


async def _flush(url: str) -> None:
    """An engine refuses while it still writes finished turns to the store: ask again."""
    async with aiohttp.ClientSession() as http:
        router = Router(http, url)
        for attempt in range(FLUSH_TRIES):
            try:
                await router.flush()
                return
            except CallFailed as error:
                if attempt == FLUSH_TRIES - 1:
                    raise RunFailed(f"the caches could not be flushed: {error}") from error
            await asyncio.sleep(FLUSH_PAUSE_S)
