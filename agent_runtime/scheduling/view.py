"""What a placement policy sees: frozen values, built anew for every pass.

The owner of the live state (`dispatch.loop`) makes a `ClusterView` before each call and applies
the decisions afterwards; a policy remembers nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_runtime.config import Role, SplitPolicy
from dualpath_sglang.contract.ids import EngineId, RequestId


@dataclass(frozen=True)
class EngineView:
    """One engine. `inflight` counts the turns that the router has on it now.

    `plans`: it takes plans. `reading_tokens`: what plans have given it to read from the store and
    is not known to be loaded. `namespace`: of its KV pages (empty: it says nothing of them); a
    prefill and a decode engine serve a turn together only where it is the same.
    """

    id: EngineId
    role: Role
    healthy: bool
    inflight: int = 0
    plans: bool = False
    reading_tokens: int = 0
    namespace: str = ""


@dataclass(frozen=True)
class Cursor:
    """Which engine of each role got the last turn, and how many turns were split: all the memory
    that round robin needs."""

    prefill: EngineId | None = None
    decode: EngineId | None = None
    plain: EngineId | None = None
    splits: int = 0


@dataclass(frozen=True)
class ClusterView:
    """`engines` in configuration order; `inflight` and `max_inflight` count turns of the router.

    `no_engine_wait_s`: how long a turn may wait for an engine while no engine of a role is healthy.
    """

    engines: tuple[EngineView, ...]
    inflight: int
    max_inflight: int
    no_engine_wait_s: float = 0.0
    cursor: Cursor = Cursor()
    split_policy: SplitPolicy = "none"

    def of_role(self, role: Role) -> tuple[EngineView, ...]:
        return tuple(engine for engine in self.engines if engine.role == role)

    def healthy(self, role: Role) -> tuple[EngineView, ...]:
        return tuple(engine for engine in self.of_role(role) if engine.healthy)


@dataclass(frozen=True)
class TurnView:
    """One turn that waits for a placement; `arrived` is on the scale of `now`, in seconds.

    `cached_pages`: leading pages of `page_size` tokens that the store holds of `namespace`; null:
    not known, and `no_plan` says why.
    """

    id: RequestId
    prompt_tokens: int
    new_tokens: int
    arrived: float
    cached_pages: int | None = None
    page_size: int = 0
    no_plan: str = ""
    namespace: str = ""
