"""Bytes and tokens by path, per engine, on SGLang's own `/metrics` (`--enable-metrics`).

The scheduler process writes them; `prometheus_client`'s multi-process files, which SGLang sets up,
carry them to the HTTP process. Names are declared here and nowhere else.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Literal

from dualpath_sglang.hooks import Hook, guarded

Path = Literal["store_to_prefill", "store_to_decode", "decode_to_prefill", "prefill_to_decode"]
KV_BYTES = "dualpath_kv_bytes_total"


@functools.cache
def _counter(name: str, text: str) -> Any:
    # Imported late: prometheus_client decides at import whether it writes for several processes.
    from prometheus_client import Counter

    return Counter(name, text, ("path",))


def count_bytes(path: Path, amount: int) -> None:
    """Payload bytes of KV that arrived here over `path`."""
    _counter(KV_BYTES, "KV bytes that arrived at this engine").labels(path).inc(amount)


_role = ""
_read_bytes = 0
_counting = threading.Lock()
"""Several threads read the store."""


def set_role(role: str) -> None:
    """`prefill` or `decode`, once per scheduler process."""
    global _role
    _role = role


def store_bytes() -> int:
    """Bytes that this process has read from the store so far."""
    return _read_bytes


def around_store_get(original: Any, store: Any, *args: Any, **kwargs: Any) -> Any:
    """Results are the bytes read per object, negative for a miss (`MooncakeStore`)."""
    results = original(store, *args, **kwargs)
    _count_store(results)
    return results


@guarded("counting bytes read from the store", lambda *_: None)
def _count_store(results: Any) -> None:
    global _read_bytes
    amount = sum(result for result in results if result > 0)
    with _counting:
        _read_bytes += amount
    if _role:
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
