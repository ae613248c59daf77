"""The systems that are compared, as what they do and do not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from dualpath_sglang.contract.errors import ConfigError


class Blocking(Enum):
    """How reading and computing hold each other up in an engine without the paper's scheduler.

    The structural assumptions: the paper does not say it. They matter to `basic`, `+layerwise` and
    `+dual path` only.
    """

    FREE = "free overlap"
    """A read starts when its turn is placed, whatever memory there is, beside any forward."""
    COPIES = "copies inside the forward"
    """As FREE, but an engine without layer-wise prefill computes nothing while it copies the KV of
    its batch into HBM and, after computing, to the decode side."""
    ROUNDS = "rounds in lock-step"
    """As FREE, but a group starts the reads for its next forward when the one before has ended, and
    that forward when all of them have."""


class Quota(Enum):
    """What the paper's 300 ms bound: the attention of one layer, or of a whole forward."""

    NONE = "none"
    LAYER = "per layer"
    FORWARD = "per forward"


@dataclass(frozen=True)
class System:
    """layerwise: a forward holds one layer's KV in HBM; loading and handing over overlap with it.
    buffered: a read waits for room in the DRAM that the paper gives a node (A.4).
    local: reads and copies take no time.
    placement: name of a policy of the shipped scheduler. path: who reads, where the policy leaves
    it open. on_arrival: turns are placed when they arrive, too, not only when engines fetch.
    """

    name: str
    layerwise: bool = True
    blocking: Blocking = Blocking.FREE
    quota: Quota = Quota.NONE
    buffered: bool = False
    local: bool = False
    placement: str = "round_robin"
    path: str = "prefill_path"
    on_arrival: bool = False


def ladder(blocking: Blocking, quota: Quota) -> Mapping[str, System]:
    """The paper's systems by name, from `basic` to `oracle`."""
    systems = (
        System("basic", layerwise=False, blocking=blocking),
        System("+layerwise", blocking=blocking),
        System("+dual path", blocking=blocking, path="round_robin"),
        System("paper", quota=quota, buffered=True, placement="paper", path="auto"),
        System("oracle", quota=quota, local=True, placement="paper", path="auto"),
    )
    return {system.name: system for system in systems}


def named(name: str, blocking: Blocking, quota: Quota) -> System:
    """Raises ConfigError for a name that is not known."""
    systems = ladder(blocking, quota)
    if name not in systems:
        raise ConfigError(f"no system {name!r}; known: {', '.join(systems)}", field="system")
    return systems[name]
