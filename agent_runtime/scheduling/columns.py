"""The rows of the engines of one role: writable for the fleet, read-only for policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from agent_runtime.scheduling.profile import KV_BYTES_PER_TOKEN, Profile
from agent_runtime.scheduling.view import EngineFacts, PrefillSide, Side
from dualpath_sglang.contract.engine_report import EngineReport, Rate
from dualpath_sglang.contract.ids import RequestId

S = TypeVar("S", bound=Side)


@dataclass(slots=True)
class Part:
    """What one turn adds to the row of one engine, in tokens.

    load: of `loadable`. kv: of `free`. seen: the last report has it, so that the amounts are the
    report's, and room is in its numbers. loaded: nothing is left to read.
    """

    seq: int
    tok: float
    work: float = 0.0
    store: float = 0.0
    peer: float = 0.0
    load: float = 0.0
    kv: float = 0.0
    seen: bool = False
    loaded: bool = False


@dataclass(slots=True)
class Account:
    """placed: turns of the router that have not ended. turns: those that are not over here, as far
    as it knows (at the first token P is done). over: those that are, until the engine's reports
    are known to be without them; true: the last one has it. boot_nonce, number: of the last
    report."""

    placed: int = 0
    turns: dict[RequestId, Part] = field(default_factory=dict)
    over: dict[RequestId, bool] = field(default_factory=dict)
    boot_nonce: str = ""
    number: int = -1
    kv_bytes: float = KV_BYTES_PER_TOKEN


class Columns(Generic[S]):
    """Rows in configuration order. `side` is the same memory under its read-only type."""

    def __init__(
        self,
        kind: type[S],
        engines: Sequence[EngineFacts],
        groups: Sequence[int],
        nodes: Sequence[int],
        profile: Profile,
    ) -> None:
        n = len(engines)
        self.accounts = [Account() for _ in engines]
        self.profile = profile
        self.ranks = tuple(engine.rank for engine in engines)
        self.index = {rank: i for i, rank in enumerate(self.ranks)}
        self.group, self.node = np.array(groups, np.int64), np.array(nodes, np.int64)
        self.namespace = np.zeros(n, np.int64)
        self.up, self.plans = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.seq, self.tok, self.work, self.store_queue = (np.zeros(n) for _ in range(4))
        self.store_rate = np.zeros(n)
        self.loadable, self.load_limit, self.free, self.pool, self.reported_at = (
            np.full(n, np.inf) for _ in range(5)
        )
        self._make_more(n)
        for i in range(n):
            self.set_rates(i, Rate(), Rate(), Rate())
        shown: dict[str, Any] = {f.name: _shown(getattr(self, f.name)) for f in fields(kind)}
        self.side: S = kind(**shown)

    def _make_more(self, n: int) -> None:
        """Columns that only this role has."""

    def set_rates(self, i: int, store: Rate, peer: Rate, compute: Rate) -> None:
        """Where a rate has no samples, the profile's."""
        bytes_per_s = store.per_s if store.samples else self.profile.store_bytes_per_s
        self.store_rate[i] = max(1.0, bytes_per_s / self.accounts[i].kv_bytes)

    def add(self, i: int, part: Part, sign: int = 1) -> None:
        """Load and queues of one turn, room apart."""
        self.seq[i] += sign * part.seq
        self.tok[i] += sign * part.tok
        self.work[i] += sign * part.work
        self.store_queue[i] += sign * part.store

    def take_room(self, i: int, part: Part, sign: int = 1) -> None:
        self.loadable[i] -= sign * part.load
        self.free[i] -= sign * part.kv

    def set_base(self, i: int, report: EngineReport | None) -> None:
        """The row as if the engine had no turns but those of the report."""
        if report is None:
            self.seq[i] = self.tok[i] = self.work[i] = self.store_queue[i] = 0.0
            for room in (self.loadable, self.load_limit, self.free, self.pool, self.reported_at):
                room[i] = np.inf
            return
        memory = report.memory
        self.seq[i], self.tok[i] = report.seq, report.tok
        self.work[i] = sum(row.compute for row in report.requests)
        self.store_queue[i] = report.store_queue
        self.loadable[i], self.load_limit[i] = memory.loadable, memory.load_limit
        self.free[i], self.pool[i] = memory.device_free, memory.device_pool


class PrefillColumns(Columns[PrefillSide]):
    def _make_more(self, n: int) -> None:
        self.peer_queue, self.peer_rate, self.compute_rate = (np.zeros(n) for _ in range(3))

    def set_rates(self, i: int, store: Rate, peer: Rate, compute: Rate) -> None:
        super().set_rates(i, store, peer, compute)
        bytes_per_s = peer.per_s if peer.samples else self.profile.peer_bytes_per_s
        tokens_per_s = compute.per_s if compute.samples else self.profile.compute_tokens_per_s
        self.peer_rate[i] = max(1.0, bytes_per_s / self.accounts[i].kv_bytes)
        self.compute_rate[i] = max(1.0, tokens_per_s)

    def add(self, i: int, part: Part, sign: int = 1) -> None:
        super().add(i, part, sign)
        self.peer_queue[i] += sign * part.peer

    def set_base(self, i: int, report: EngineReport | None) -> None:
        super().set_base(i, report)
        self.peer_queue[i] = 0.0 if report is None else report.peer_queue


def _shown(value: Any) -> Any:
    """An array as others may see it."""
    if not isinstance(value, np.ndarray):
        return value
    seen: npt.NDArray[Any] = value.view()
    seen.flags.writeable = False
    return seen
