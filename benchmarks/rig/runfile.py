"""The record of one run: what was set, what was measured. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agent_runtime.stack.component import Component
from benchmarks.replay.records import Observed
from benchmarks.replay.stats import summary
from benchmarks.rig import measure
from benchmarks.rig.arms import ARMS, TOPOLOGIES, Arm, Job
from benchmarks.rig.config import RigConfig
from benchmarks.rig.measure import Counted, Pages
from benchmarks.rig.stacks import shown_flags
from benchmarks.rig.workload import RigWorkload

RUN_SCHEMA = "dualpath-rig-run/1"


def run_tree(
    job: Job,
    digest: str,
    config: dict[str, Any],
    seen: Observed,
    counted: Counted,
    pages: Pages,
) -> dict[str, Any]:
    """`digest`: of the settings; runs with another one are not comparable."""
    done = [turn for turn in seen.turns if turn.error is None]
    window = measure.window(seen.turns, seen.sessions)
    names, ours = TOPOLOGIES[job.topology].engine_names, ARMS[job.arm].ours
    return {
        "schema": RUN_SCHEMA,
        **asdict(job),
        "digest": digest,
        "config": config,
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
        "planned_bytes": measure.planned_bytes(done, pages),
        "needed_bytes": measure.needed_bytes(done, pages),
        "fallbacks": fallbacks(seen),
        "cpu_s": counted.cpu_s,
        "cpu_busy_share": counted.busy_share,
        "cpu_foreign_share": counted.foreign_share,
        **measure.byte_block(counted, names, pages, ours),
        "turn_records": [asdict(turn) for turn in seen.turns],
        "session_records": [asdict(session) for session in seen.sessions],
    }


def arm_config(
    arm: Arm, config: RigConfig, workload: RigWorkload, components: Sequence[Component]
) -> dict[str, Any]:
    """What the rules compare; of engines, what they were really started with."""
    engines = {part.name: part for part in components if part.kind == "engine"}
    prefill = next(part for part in engines.values() if part.role == "prefill")
    flags = shown_flags(prefill.command)
    decoders = sum(part.role == "decode" for part in engines.values())
    decode = config.decode_pools.shared(decoders)
    inflight = config.inflight(len(engines) - decoders)
    return {
        "hooks": prefill.env["DUALPATH_ENGINE_HOOKS"],
        "shaped": arm.shaped,
        "split": arm.split,
        "nic_bits_per_s": config.nic_bits_per_s,
        "model": asdict(config.model),
        "attention_backend": flags.get("attention-backend"),
        "prefill_pools": _pools(flags) | {"engines": len(engines) - decoders},
        "decode_pools": asdict(decode) | {"engines": decoders},
        "prefetch_policy": flags.get("hicache-storage-prefetch-policy", config.prefetch_policy),
        "page_size": config.page_size,
        "router": f"agent_runtime, round robin, at most {inflight} turns in flight",
        "trace": workload.digest,
        "sessions": len(workload.sessions),
        "working_set": workload.working_set,
        "flags": {name: shown_flags(part.command) for name, part in engines.items()},
    }


def fallbacks(seen: Observed) -> dict[str, int]:
    """Why plans were not followed, by engine role and reason."""
    found: Counter[str] = Counter()
    for turn in seen.turns:
        for role, load in (turn.load or {}).items():
            if load.get("fallback"):
                found[f"{role}: {load['fallback']}"] += 1
    return dict(found)


def _pools(flags: dict[str, str]) -> dict[str, int]:
    tokens = int(flags["max-total-tokens"])
    return {"tokens": tokens, "host_tokens": round(tokens * float(flags["hicache-ratio"]))}
