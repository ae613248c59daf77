"""One-sided reads of another engine's host pool: this process's own Mooncake transfer engine.

SGLang's engines write only, and the store registers host memory for itself alone, so neither can
serve a peer's reads. TCP and RDMA differ by configuration; RDMA has not been run on hardware.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dualpath_sglang.contract.addresses import host_port
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.secondpath.pool import Entries

MAX_ENTRIES = 64
"""Reads under way at a time: over TCP each has a connection of its own."""
POLL_S = 0.0003
"""Mooncake's own wait for a read polls without a pause and burns a core."""
TIMED_OUT = -2
"""Mooncake's state of a batch that it has given up while its bytes may still come."""
TIMED_OUT_S = 60.0
"""How long they may: twice the pause after which Mooncake closes a TCP connection."""


@dataclass(frozen=True)
class Reading:
    """How a read ended. is_over: true once no byte of it can arrive any more; asked again and
    again, by one thread at a time."""

    whole: bool
    is_over: Callable[[], bool] = lambda: True


class Transport(Protocol):
    """What pulling needs of a transfer engine. Thread-safe."""

    @property
    def session(self) -> str:
        """`host:port` under which peers reach this engine."""
        ...

    def read(self, session: str, reads: Entries, limit_s: float) -> Reading:
        """Copy remote memory here. Blocks for `limit_s` at most:
        what is under way then is left alone, and may still arrive."""
        ...

    def renew(self) -> None:
        """Forget all peers: one that restarted on the same port has other memory."""
        ...


class MooncakeTransport:
    """A transfer engine with one registered region, the host pool."""

    def __init__(self, host: str, protocol: str, device: str, base: int, size: int) -> None:
        """`base`, `size`: address and bytes of the region. Raises StartupError."""
        self._host, self._protocol, self._device = host, protocol, device
        self._base, self._size = base, size
        self._lock = threading.Lock()
        self._old: list[Any] = []
        self._engine = self._start()

    @property
    def session(self) -> str:
        return host_port(self._host, self._engine.get_rpc_port())

    def read(self, session: str, reads: Entries, limit_s: float) -> Reading:
        engine, end = self._engine, time.monotonic() + limit_s
        entries = list(zip(reads.local, reads.remote, reads.lengths, strict=True))
        for at in range(0, len(entries), MAX_ENTRIES):
            # One batch for each: Mooncake tells the state of a batch's first entry only.
            batches = _Batches(
                engine,
                [
                    engine.batch_transfer_async_read(session, *([n] for n in e))
                    for e in entries[at : at + MAX_ENTRIES]
                ],
            )
            # Also after one has failed: less arrives late then.
            while not batches.are_over() and time.monotonic() < end:
                time.sleep(POLL_S)
            if batches.failed or not batches.are_over():
                return Reading(False, batches.are_over)
        return Reading(True)

    def renew(self) -> None:
        with self._lock:
            # Another thread may be inside the old engine, and peers may read from it.
            self._old.append(self._engine)
            self._engine = self._start()

    def _start(self) -> Any:
        from mooncake.engine import TransferEngine

        engine = TransferEngine()
        code = engine.initialize(self._host, "P2PHANDSHAKE", self._protocol, self._device)
        if code != 0:
            raise StartupError(
                f"DualPath: Mooncake's transfer engine did not start on {self._host} "
                f"({self._protocol}, device {self._device or 'any'}): code {code}"
            )
        code = engine.register_memory(self._base, self._size)
        if code != 0:
            raise StartupError(
                f"DualPath: {self._size} bytes of host pool could not be registered: code {code}"
            )
        return engine


class _Batches:
    """Asynchronous reads of one engine, which this keeps alive. Not thread-safe."""

    def __init__(self, engine: Any, batches: Sequence[int]) -> None:
        self._engine = engine
        self._pending = {batch for batch in batches if batch != 0}
        self._quiet_at = 0.0
        self.failed = 0 in batches  # 0: not even begun

    def are_over(self) -> bool:
        for batch in list(self._pending):
            state = self._engine.transfer_check_status(batch)
            if state == 0:
                continue
            # Not asked again: Mooncake has given the number back.
            self._pending.discard(batch)
            self.failed = self.failed or state < 0
            if state == TIMED_OUT:
                self._quiet_at = time.monotonic() + TIMED_OUT_S
        return not self._pending and time.monotonic() >= self._quiet_at
