"""Bytes, tokens and events by path, per engine, on SGLang's own `/metrics` (`--enable-metrics`).

The scheduler process writes them; `prometheus_client`'s multi-process files, which SGLang sets up,
carry them to the HTTP process. Names are declared here and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

from dualpath_sglang.hooks import Hook, guarded

Path = Literal["store_to_prefill", "store_to_decode", "decode_to_prefill", "prefill_to_decode"]
SECONDS_OF = {
    "staging": "Seconds of one staging",
    "pull": "Seconds of a load with pages from a peer, store part included",
    "load": "Seconds of a load without pages from a peer",
}
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_made: dict[str, Any] = {}
_making = threading.Lock()
"""Several threads count, and prometheus_client refuses a name that is made twice."""


def _metric(
    kind: Literal["Counter", "Gauge", "Histogram"], name: str, *args: Any, **kw: Any
) -> Any:
    """`prometheus_client.KIND(name, ...)`, made at the first use."""
    with _making:
        if name not in _made:
            # Imported late: it decides at import whether it writes for several processes.
            import prometheus_client

            _made[name] = getattr(prometheus_client, kind)(name, *args, **kw)
        return _made[name]


def _count(name: str, text: str, label: str, value: str, amount: int = 1) -> None:
    _metric("Counter", name, text, (label,)).labels(value).inc(amount)


def count_bytes(path: Path, amount: int) -> None:
    """Payload bytes of KV that arrived here over `path`."""
    _count("dualpath_kv_bytes_total", "KV bytes that arrived at this engine", "path", path, amount)


class PrometheusMeter:
    """What the second path counts (`secondpath.meter.Meter`)."""

    def __init__(self) -> None:
        self._gauges: dict[str, int] = {}

    def moved(self, path: Path, tokens: int, amount: int) -> None:
        # Bytes read from the store are counted where they are read: `around_store_get`.
        if not path.startswith("store_"):
            count_bytes(path, amount)
        _count("dualpath_kv_tokens_total", "KV tokens that arrived here", "path", path, tokens)

    def fallback(self, reason: str, pages: int = 1) -> None:
        if pages > 0:
            text = "Pages that came another way than planned"
            _count("dualpath_fallback_pages_total", text, "reason", reason, pages)

    def plan(self, outcome: str) -> None:
        _count("dualpath_plans_total", "Plans by what became of them", "outcome", outcome)

    def took(self, what: Literal["staging", "pull", "load"], seconds: float) -> None:
        name = f"dualpath_{what}_seconds"
        _metric("Histogram", name, SECONDS_OF[what], buckets=BUCKETS_S).observe(seconds)

    def gauge(self, name: Literal["pinned", "quarantined", "exchanges"], value: int) -> None:
        if self._gauges.get(name) != value:
            text = f"Now {name}: pages, or exchanges"
            gauge = _metric("Gauge", f"dualpath_{name}", text, multiprocess_mode="livemostrecent")
            gauge.set(value)
        self._gauges[name] = value


_role = ""


def set_role(role: str) -> None:
    """`prefill` or `decode`, once per scheduler process."""
    global _role
    _role = role


def around_store_get(original: Any, store: object, *args: Any, **kwargs: Any) -> Any:
    """Results are the bytes read per object, negative for a miss (`MooncakeStore`)."""
    results = original(store, *args, **kwargs)
    _count_store(results)
    return results


@guarded("counting bytes read from the store", lambda *_: None)
def _count_store(results: Sequence[int]) -> None:
    if _role:
        amount = sum(result for result in results if result > 0)
        count_bytes("store_to_prefill" if _role == "prefill" else "store_to_decode", amount)


METRIC_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.storage.mooncake_store.mooncake_store."
        "MooncakeStore._get_batch_zero_copy_impl",
        "around",
        around_store_get,
        "what this engine really read from the store, object by object",
        ("key_strs", "buffer_ptrs", "buffer_sizes"),
    ),
)
