"""Token bucket: a bandwidth limit for threads that can wait."""

from __future__ import annotations

import threading

from dualpath_sglang.contract.clock import Clock

BURST_S = 0.05
"""Bytes that may pass at once after a pause, in seconds of the rate."""


class TokenBucket:
    """Thread-safe. `rate` in bytes per second, 0: no limit. A transfer larger than the burst
    passes and is paid for afterwards, so any size works and the long-run rate holds."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = clock.now()
        self._lock = threading.Lock()

    def quantum(self, size: int, most: int) -> int:
        """How many items of `size` bytes to move at once, at most `most`: a short burst."""
        if self._rate <= 0:
            return most
        return min(most, max(1, int(self._rate * BURST_S / size)))

    def delay(self, amount: int) -> float:
        """Account for `amount` bytes; seconds to wait before they are sent."""
        if self._rate <= 0:
            return 0.0
        now = self._clock.now()
        with self._lock:
            start = max(self._free_at, now - BURST_S)
            self._free_at = start + amount / self._rate
        return max(0.0, start - now)
