"""Placement policies by the name that the configuration uses."""

from __future__ import annotations

from collections.abc import Mapping

from agent_runtime.config import PolicyName
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Policy

POLICIES: Mapping[PolicyName, Policy] = {"round_robin": round_robin}
