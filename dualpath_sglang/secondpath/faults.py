"""Named faults for tests on real engines: `DUALPATH_ENGINE_FAULT=store_missing:2,peer_timeout`.

A name fires every time, `name:3` the first three times.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.secondpath.pool import Entries
from dualpath_sglang.secondpath.transport import Reading, Transport
from dualpath_sglang.sglang_types import Scheduler

NAMES = {
    "store_missing": "the last page of a store read is reported absent",
    "store_short": "the last object of a store read is reported one byte short",
    "store_error": "a store read raises",
    "store_stall": "a store read takes 60 s",
    "peer_timeout": "a one-sided read fails after 1 s, its bytes may come for another 19",
    "peer_corrupt": "each exported page changes between its checksum and its announcement",
    "divert_error": "taking over a prefetch operation raises",
    "store_query_error": "SGLang's own question what the store has raises",
    "store_write_error": "SGLang's own write to the store raises",
    "store_get_error": "SGLang's own read from the store raises (it reads where taking over fails)",
    "deferred_forgotten": "SGLang calls itself idle while it owes memory to aborted transfers",
}

_OF_SGLANG = {
    "store_query_error": ("batch_exists", "batch_exists_v2"),
    "store_write_error": ("batch_set_v1",),
    "store_get_error": ("batch_get_v1",),
}
"""Methods of the store's client that SGLang's storage threads call."""

LATE_S = 20.0


class Faults:
    """Thread-safe. Raises ConfigError for an unknown name."""

    def __init__(self, text: str) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        for word in filter(None, (part.strip() for part in text.split(","))):
            name, _, count = word.partition(":")
            if name not in NAMES or (count and not count.isdigit()):
                raise ConfigError(f"no fault {word!r}; there are {', '.join(NAMES)}", field="fault")
            self._left[name] = int(count) if count else 2**31

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def fires(self, name: str) -> bool:
        """Does it happen now? Counts down."""
        if name not in self._left:
            return False
        with self._lock:
            self._left[name] -= 1
            return self._left[name] >= 0


def faulty(transport: Transport, faults: Faults) -> Transport:
    """`transport`, or one that fails where a test wants it to."""
    return _FailingTransport(transport, faults) if "peer_timeout" in faults else transport


def fail_store(store: Any, faults: Faults) -> None:
    """Where a test wants it, calls of SGLang's own threads to the store's client raise. The store
    itself is as it was."""
    for fault, methods in _OF_SGLANG.items():
        if fault in faults:
            for name in methods:
                setattr(store, name, _raising(getattr(store, name), fault, faults))


def forget_deferred(scheduler: Scheduler, faults: Faults) -> None:
    """Of a decode engine. What SGLang did up to 0.5.22."""
    if "deferred_forgotten" not in faults:
        return
    transfers, upstream = scheduler.disagg_decode_transfer_queue, scheduler.is_fully_idle

    def is_fully_idle(*args: Any, **kwargs: Any) -> bool:
        owed, transfers._deferred_releases = transfers._deferred_releases, []
        try:
            return upstream(*args, **kwargs)
        finally:
            transfers._deferred_releases = owed

    vars(scheduler)["is_fully_idle"] = is_fully_idle


def _raising(call: Any, fault: str, faults: Faults) -> Any:
    def failing(*args: Any, **kwargs: Any) -> Any:
        if faults.fires(fault):
            raise OSError(f"fault: {fault}")
        return call(*args, **kwargs)

    return failing


class _FailingTransport:
    def __init__(self, inner: Transport, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    @property
    def session(self) -> str:
        return self._inner.session

    def read(self, session: str, reads: Entries, limit_s: float) -> Reading:
        if self._faults.fires("peer_timeout"):
            over_at = time.monotonic() + LATE_S
            time.sleep(1.0)
            return Reading(False, lambda: time.monotonic() >= over_at)
        return self._inner.read(session, reads, limit_s)

    def renew(self) -> None:
        self._inner.renew()
