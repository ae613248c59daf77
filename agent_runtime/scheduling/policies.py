"""Placement policies by the name that the configuration uses, and the fixed ones of comparisons."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent_runtime.config import PolicyName, SplitPolicy
from agent_runtime.scheduling.baselines import (
    at_random,
    cache_affinity,
    round_robin,
    session_affinity,
)
from agent_runtime.scheduling.dualpath import dualpath
from agent_runtime.scheduling.paper import paper
from agent_runtime.scheduling.placement import Decision, Policy
from agent_runtime.scheduling.view import ClusterView, TurnView

POLICIES: Mapping[PolicyName, Policy] = {
    "round_robin": round_robin,
    "random": at_random,
    "session_affinity": session_affinity,
    "cache_affinity": cache_affinity,
    "paper": paper,
    "dualpath": dualpath,
}


def with_split(policy: Policy, split: SplitPolicy) -> Policy:
    """`policy` with this way of reading, whatever the view says."""

    def schedule(
        view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
    ) -> list[Decision]:
        return policy(replace(view, split_policy=split), waiting, now, rng)

    return schedule


PATHS: Mapping[str, Policy] = {
    "prefill_path": with_split(round_robin, "prefill_path"),
    "shorter_queue": with_split(round_robin, "shorter_queue"),
    "constant_split": with_split(round_robin, "split"),
}
"""Round robin over engines that differs in who reads."""
