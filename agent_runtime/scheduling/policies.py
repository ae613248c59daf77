"""Placement policies by the name that the configuration uses."""

from __future__ import annotations

from collections.abc import Mapping

from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Policy
from dualpath_sglang.contract.errors import ConfigError

POLICIES: Mapping[str, Policy] = {"round_robin": round_robin}


def policy_named(name: str) -> Policy:
    """Raises ConfigError that lists the names."""
    if name not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise ConfigError(f"unknown policy {name!r}: use one of {known}", field="policy")
    return POLICIES[name]
