"""What a placement policy sees: the engines as columns, one row per engine, and the waiting turns.

    Fleet (one owner, changes) ── view() ──▶ ClusterView (read-only) ──▶ schedule ──▶ decisions

An engine of the scheduler is one data-parallel rank: it has pools, queues and reports of its own.
A policy remembers nothing; what it wants to know in the next pass is in its decisions, and the
owner of the waiting turns puts it into their views.

Columns, since a pass over a thousand engines has less than 100 us: `side.tok[i]` and
`side.ranks[i]` are of the same engine. Amounts are tokens, as floats: whole numbers that are exact
up to 2**53, or infinite where the engine has not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_runtime.config import Role, SplitPolicy
from agent_runtime.scheduling.profile import DEFAULT_PROFILE, Profile
from dualpath_sglang.contract.ids import EngineId, RequestId

Amounts = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]


class Rank(NamedTuple):
    """One data-parallel rank of an engine; most engines have only the first."""

    engine: EngineId
    dp: int = 0


@dataclass(frozen=True)
class EngineFacts:
    """What does not change while an engine is in the fleet.

    node: the machine whose storage NIC it reads with (empty: one of its own).
    """

    rank: Rank
    role: Role
    node: str = ""


@dataclass(frozen=True)
class Side:
    """All engines of one role, in configuration order. Nobody but its owner may write.

    up: serves. plans: takes plans. group: number of its group, the ranks of one role on one node.
    node: number of its node, the same in every role. namespace: number of the namespace of its KV
    pages (model, weights, layout), 0: not known. A prefill and a decode engine serve a turn
    together only where it is the same.
    seq, tok: requests that it has not finished, and their prompt tokens. work: those of the tokens
    that it has yet to compute.
    store_queue: still to read from the store. store_rate: tokens per second.
    loadable: KV that may be loaded into its host memory now (P: prefetched, D: staged and pinned).
    load_limit: the same when nothing else is loading. free: of its device pool. pool: all of it.
    reported_at: when its last report was true, on the scale of `now`; infinite: it sends none.
    """

    ranks: tuple[Rank, ...]
    index: Mapping[Rank, int]
    group: Codes
    node: Codes
    namespace: Codes
    up: Flags
    plans: Flags
    seq: Amounts
    tok: Amounts
    work: Amounts
    store_queue: Amounts
    store_rate: Amounts
    loadable: Amounts
    load_limit: Amounts
    free: Amounts
    pool: Amounts
    reported_at: Amounts

    def __len__(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class PrefillSide(Side):
    """peer_queue: still to pull from decode engines. peer_rate, compute_rate: tokens per second."""

    peer_queue: Amounts
    peer_rate: Amounts
    compute_rate: Amounts


@dataclass(frozen=True)
class DecodeSide(Side):
    pass


@dataclass(frozen=True)
class PlainSide(Side):
    """Ordinary engines, which do both halves of a turn."""


class Cursor(NamedTuple):
    """Which engine of each role got the last turn, and how many turns were split: all the memory
    that round robin needs."""

    prefill: Rank | None = None
    decode: Rank | None = None
    plain: Rank | None = None
    splits: int = 0


START = Cursor()


@dataclass(frozen=True)
class ClusterView:
    """`inflight` and `max_inflight` count turns of the router.

    no_engine_wait_s: how long a turn may wait for an engine while no engine of a role is healthy.
    fetching: number of the group whose report started this pass; null: something else did.
    namespaces: their numbers. mixed: prefill and decode engines have more than one.
    """

    prefill: PrefillSide
    decode: DecodeSide
    plain: PlainSide
    profile: Profile = DEFAULT_PROFILE
    inflight: int = 0
    max_inflight: int = 1024
    no_engine_wait_s: float = 0.0
    cursor: Cursor = START
    split_policy: SplitPolicy = "none"
    fetching: int | None = None
    namespaces: Mapping[str, int] = field(default_factory=dict)
    mixed: bool = False


@dataclass(frozen=True)
class TurnView:
    """One turn that waits for a placement; `arrived` is on the scale of `now`, in seconds.

    cached_pages: leading pages of `page_size` tokens that the store holds of `namespace`; null:
    not known, and `no_plan` says why.
    output_tokens: KV that D keeps free for what the turn generates.
    held: leading pages that an engine has in its memory, for those that have any.
    prefill, decode: the engines of the session's last turn. staged: the decode engine into which
    the router has had the prefix loaded ahead.
    group: the decode group in whose queue it waits. overtaken: by how many later turns.
    """

    id: RequestId
    prompt_tokens: int
    new_tokens: int
    arrived: float
    cached_pages: int | None = None
    page_size: int = 0
    no_plan: str = ""
    namespace: str = ""
    output_tokens: int = 0
    held: Mapping[Rank, int] = field(default_factory=dict)
    prefill: Rank | None = None
    decode: Rank | None = None
    staged: Rank | None = None
    group: int | None = None
    overtaken: int = 0
