"""One turn on its way through the engines: what goes in, what has come out so far."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_runtime.dispatch.output import Finish, Output
from agent_runtime.scheduling.placement import Placed
from agent_runtime.trajectory.model import Timing, Usage
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.ids import RequestId


@dataclass(frozen=True)
class Job:
    """`prompt`: the whole history and what is appended. `sampling`: checked, as engines get it.
    `kv_hints`: the plan for its cached prefix, as both engines get it."""

    id: RequestId
    prompt: array[int]
    sampling: Mapping[str, Any]
    kv_hints: Mapping[str, Any] | None = None


@dataclass
class Progress:
    """Filled in while the turn runs; still readable when it fails. Times: the router's clock.

    `output` and `text` hold only what the reader's channel has taken: a client has seen no more.
    `reading` makes them out of what the decode engine sends.
    """

    id: RequestId
    arrived: float
    reading: Output | None = None
    placed: Placed | None = None
    placed_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    output: array[int] = field(default_factory=pack)
    texts: list[str] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def timing(self, now: float) -> Timing:
        placed_at = now if self.placed_at is None else self.placed_at
        first = self.first_token_at
        return Timing(
            queued_s=placed_at - self.arrived,
            ttft_s=None if first is None else first - self.arrived,
            e2e_s=(now if self.ended_at is None else self.ended_at) - self.arrived,
        )
