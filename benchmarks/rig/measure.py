"""From what a run observed to its result: throughput of the window, hits, bytes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.replay.records import TIERS, SessionRecord, TurnRecord
from benchmarks.rig.counters import EngineCounts
from benchmarks.rig.net import NodeBytes

PLANNED_PATHS = ("store_to_prefill", "store_to_decode", "decode_to_prefill")


@dataclass(frozen=True)
class Window:
    """The time in which every session is active, in seconds since the start of the replay, and
    the turns that ended within it."""

    start_s: float
    end_s: float
    turns: int

    @property
    def turns_per_s(self) -> float:
        return self.turns / (self.end_s - self.start_s) if self.end_s > self.start_s else 0.0


def window(turns: Sequence[TurnRecord], sessions: Sequence[SessionRecord]) -> Window:
    """From the first turn of the last session to start, to the end of the first one to end."""
    first: dict[str, float] = {}
    for turn in turns:
        first[turn.session] = min(turn.started_s, first.get(turn.session, turn.started_s))
    if not first or len(first) < len(sessions):
        return Window(0.0, 0.0, 0)
    start = max(first.values())
    end = min(session.end_s for session in sessions)
    ends = [t.started_s + (t.e2e_ms or 0.0) / 1e3 for t in turns if t.error is None]
    # A session's record is closed a moment after its last turn has ended.
    return Window(start, end, sum(start < at <= end for at in ends))


@dataclass(frozen=True)
class Pages:
    """KV page size in tokens, and bytes of one token's KV."""

    size: int
    bytes_per_token: int


def planned_bytes(turns: Sequence[TurnRecord], pages: Pages) -> dict[str, int]:
    """What the plans asked for, by path, less what the engines already had.

    D reads [0, k) and P [k, n) from the store, P pulls [0, k) from D. An engine that holds the
    first pages of a prompt already reads the rest only. Turns without a plan ask for nothing.
    """
    asked = dict.fromkeys(PLANNED_PATHS, 0)
    for turn in turns:
        if turn.pages is None or turn.split is None:
            continue
        k, n = turn.split * pages.size, turn.pages * pages.size
        on_p, on_d = held(turn.prefill), held(turn.decode)
        asked["store_to_decode"] += max(0, k - on_d)
        asked["decode_to_prefill"] += max(0, k - on_p)
        asked["store_to_prefill"] += max(0, n - max(k, on_p))
    return {path: tokens * pages.bytes_per_token for path, tokens in asked.items()}


def needed_bytes(turns: Sequence[TurnRecord], pages: Pages) -> int:
    """KV of hit tokens that were neither on P nor on D, each counted once.

    Without a plan, what P found in the store.
    """
    tokens = 0
    for turn in turns:
        if turn.pages is None or turn.split is None:
            tokens += (turn.prefill or {}).get("storage", 0)
            continue
        k, n = turn.split * pages.size, turn.pages * pages.size
        tokens += max(0, n - max(held(turn.prefill), min(held(turn.decode), k)))
    return tokens * pages.bytes_per_token


def held(found: dict[str, int] | None) -> int:
    """Tokens that an engine already had in its own memory."""
    return found["device"] + found["host"] if found else 0


def by_tier(found: Sequence[dict[str, int] | None]) -> dict[str, int] | None:
    """Sums over the turns that report; None when none does."""
    known = [counts for counts in found if counts is not None]
    return {tier: sum(c[tier] for c in known) for tier in TIERS} if known else None


def from_storage(turns: Sequence[TurnRecord]) -> float | None:
    """Share of P's hit tokens that came off a storage NIC; None without hits.

    Tokens pulled from D count as far as D had to read them.
    """
    hits = read = 0
    for turn in turns:
        found = turn.prefill or dict.fromkeys(TIERS, 0)
        pulled = max(0, found["peer"] - held(turn.decode)) if turn.decode else found["peer"]
        hits += sum(found[tier] for tier in TIERS)
        read += found["storage"] + pulled
    return read / hits if hits else None


def max_over_avg(values: Sequence[float]) -> float | None:
    """1.0: every NIC carries the same."""
    mean = sum(values) / len(values) if values else 0.0
    return max(values) / mean if mean else None


@dataclass(frozen=True)
class Counted:
    """Differences over one run: kernel counters by node, engine counters, CPU seconds by
    component and of the whole machine, and what the machine could have given."""

    nodes: dict[str, NodeBytes]
    engines: dict[str, EngineCounts]
    cpu_s: dict[str, float]
    busy_s: float = 0.0
    capacity_s: float = 0.0

    @property
    def foreign_share(self) -> float | None:
        """Share of the machine's CPUs that something else used."""
        if not self.capacity_s:
            return None
        return max(0.0, self.busy_s - sum(self.cpu_s.values())) / self.capacity_s

    @property
    def busy_share(self) -> float | None:
        return self.busy_s / self.capacity_s if self.capacity_s else None


def byte_block(
    counted: Counted, engines: Sequence[str], pages: Pages, ours: bool
) -> dict[str, Any]:
    """Bytes of one run. The kernel's counters say what each NIC read; the payload comes from our
    plugin's counters, or where no hook of ours runs from SGLang's own count of tokens."""
    nic = {name: counted.nodes[name].storage_read for name in engines}
    paths: dict[str, int] = defaultdict(int)
    for counts in counted.engines.values():
        for path, amount in counts.kv_bytes.items():
            paths[path] += amount
    tokens = sum(counts.prefetched_tokens for counts in counted.engines.values())
    store = paths["store_to_prefill"] + paths["store_to_decode"]
    return {
        "nic_read_bytes": nic,
        "nic_written_bytes": {name: counted.nodes[name].storage_written for name in engines},
        "compute_read_bytes": {name: counted.nodes[name].compute_read for name in engines},
        "nic_max_over_avg": max_over_avg(list(nic.values())),
        "store_read_bytes": store if ours else tokens * pages.bytes_per_token,
        "store_read_source": "plugin" if ours else "sglang:prefetched_tokens_total",
        "peer_bytes": paths["decode_to_prefill"],
        "path_bytes": dict(paths) if ours else None,
    }
