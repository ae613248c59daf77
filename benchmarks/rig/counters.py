"""Counters that engines and processes keep themselves: KV bytes by path, tokens, CPU seconds."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

PATHS = ("store_to_prefill", "store_to_decode", "decode_to_prefill", "prefill_to_decode")
_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
METRICS_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class EngineCounts:
    """Since an engine's start. `kv_bytes` by path, from our plugin (all 0 without it).
    `prefetched_tokens`: read from the store, by SGLang's own counter."""

    kv_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 0))
    prefetched_tokens: int = 0

    def since(self, before: EngineCounts) -> EngineCounts:
        return EngineCounts(
            {path: self.kv_bytes[path] - before.kv_bytes[path] for path in PATHS},
            self.prefetched_tokens - before.prefetched_tokens,
        )


def engine_counts(url: str) -> EngineCounts:
    """Read from the engine's /metrics. Raises OSError."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=METRICS_TIMEOUT_S) as reply:
        return parse_counts(reply.read().decode())


def parse_counts(text: str) -> EngineCounts:
    """Prometheus text; a counter that is not there was never used."""
    kv_bytes = dict.fromkeys(PATHS, 0)
    tokens = 0.0
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        if match["name"] == "dualpath_kv_bytes_total":
            path = re.search(r'path="(\w+)"', match["labels"] or "")
            if path is not None and path[1] in kv_bytes:
                kv_bytes[path[1]] += int(float(match["value"]))
        elif match["name"] == "sglang:prefetched_tokens_total":
            tokens += float(match["value"])
    return EngineCounts(kv_bytes, int(tokens))


def total(counts: Iterable[EngineCounts]) -> EngineCounts:
    """The sum over engines."""
    counts = list(counts)
    return EngineCounts(
        {path: sum(c.kv_bytes[path] for c in counts) for path in PATHS},
        sum(c.prefetched_tokens for c in counts),
    )


def machine_busy_s() -> float:
    """CPU seconds of the whole machine since its start, whoever used them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def own_cpu_s() -> float:
    """CPU seconds of this process, the client of all runs."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process and everything below it; 0 for a process that is gone."""
    if pid is None:
        return 0.0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    used = 0.0
    for process in tree:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += times.user + times.system
    return used
