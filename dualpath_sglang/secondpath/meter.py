"""What the second path counts. `Meter` alone keeps plain numbers; `PrometheusMeter` publishes."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from typing import Any, Literal

Path = Literal["store_to_prefill", "store_to_decode", "decode_to_prefill", "prefill_to_decode"]
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meter:
    """Thread-safe. Reasons and paths are the labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tokens: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.plans: Counter[str] = Counter()
        self.gauges: dict[str, int] = {}

    def moved(self, path: Path, tokens: int, amount: int) -> None:
        """`tokens` of KV, `amount` bytes, arrived here over `path`."""
        with self._lock:
            self.tokens[path] += tokens
            self.bytes[path] += amount

    def fallback(self, reason: str, pages: int = 1) -> None:
        """`pages` came another way than planned, or not at all."""
        if pages > 0:
            with self._lock:
                self.fallbacks[reason] += pages

    def plan(self, outcome: str) -> None:
        """One plan was followed, or the reason why it was changed or not."""
        with self._lock:
            self.plans[outcome] += 1

    def took(self, what: Literal["staging", "pull", "load"], seconds: float) -> None:
        """Duration of one request's staging (D), of its pull (P) or of any whole load."""

    def gauge(self, name: Literal["pinned", "quarantined", "exchanges"], value: int) -> None:
        with self._lock:
            self.gauges[name] = value


class PrometheusMeter(Meter):
    """Also on SGLang's /metrics: its engines set up prometheus_client for several processes.

    Bytes read from the store are counted where they are read (`dualpath_sglang.metrics`).
    """

    def moved(self, path: Path, tokens: int, amount: int) -> None:
        from dualpath_sglang.metrics import count_bytes

        super().moved(path, tokens, amount)
        if not path.startswith("store_"):
            count_bytes(path, amount)
        _counter("dualpath_kv_tokens_total", "KV tokens that arrived here", "path").labels(
            path
        ).inc(tokens)

    def fallback(self, reason: str, pages: int = 1) -> None:
        super().fallback(reason, pages)
        if pages > 0:
            text = "Pages that came another way than planned"
            _counter("dualpath_fallback_pages_total", text, "reason").labels(reason).inc(pages)

    def plan(self, outcome: str) -> None:
        super().plan(outcome)
        _counter("dualpath_plans_total", "Plans by what became of them", "outcome").labels(
            outcome
        ).inc()

    def took(self, what: Literal["staging", "pull", "load"], seconds: float) -> None:
        _histogram(f"dualpath_{what}_seconds", f"Seconds of one {what}").observe(seconds)

    def gauge(self, name: Literal["pinned", "quarantined", "exchanges"], value: int) -> None:
        if self.gauges.get(name) != value:
            _gauge(f"dualpath_{name}", f"Now {name}: pages, or exchanges").set(value)
        super().gauge(name, value)


# prometheus_client decides at import whether it writes for several processes: import late.


@functools.cache
def _counter(name: str, text: str, label: str) -> Any:
    from prometheus_client import Counter as PrometheusCounter

    return PrometheusCounter(name, text, (label,))


@functools.cache
def _histogram(name: str, text: str) -> Any:
    from prometheus_client import Histogram

    return Histogram(name, text, buckets=SECONDS)


@functools.cache
def _gauge(name: str, text: str) -> Any:
    from prometheus_client import Gauge

    return Gauge(name, text, multiprocess_mode="livemostrecent")
