"""One-sided reads of another engine's host pool: this process's own Mooncake transfer engine.

SGLang's engines write only, and the store registers host memory for itself alone, so neither can
serve a peer's reads. TCP and RDMA differ by configuration; RDMA has not been run on hardware.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from dualpath_sglang.contract.errors import StartupError

MAX_ENTRIES = 64
"""Reads under way at a time: over TCP each has a connection of its own."""
LIMIT_S = 30.0
"""A read that is not over by then has failed; `loads.QUARANTINE_S` is longer."""
POLL_S = 0.0003
"""Mooncake's own wait for a read polls without a pause and burns a core."""


class Transport(Protocol):
    """What pulling needs of a transfer engine. Thread-safe."""

    @property
    def session(self) -> str:
        """`host:port` under which peers reach this engine."""
        ...

    def read(
        self, session: str, local: Sequence[int], remote: Sequence[int], lengths: Sequence[int]
    ) -> bool:
        """Copy remote memory here; addresses and lengths in bytes. False: some or all did not
        arrive, and what is missing may still arrive later."""
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
        return f"{self._host}:{self._engine.get_rpc_port()}"

    def read(
        self, session: str, local: Sequence[int], remote: Sequence[int], lengths: Sequence[int]
    ) -> bool:
        engine = self._engine
        for at in range(0, len(local), MAX_ENTRIES):
            part = slice(at, at + MAX_ENTRIES)
            entries = zip(local[part], remote[part], lengths[part], strict=True)
            # One batch for each: Mooncake tells the state of a batch's first entry only.
            batches = [
                engine.batch_transfer_async_read(session, *([n] for n in e)) for e in entries
            ]
            if not self._all_done(engine, batches):
                return False
        return True

    @staticmethod
    def _all_done(engine: Any, batches: list[int]) -> bool:
        """Wait until none is under way, also after one has failed: less arrives late then."""
        good = 0 not in batches  # 0: not even begun
        end = time.monotonic() + LIMIT_S
        pending = [batch for batch in batches if batch != 0]
        while pending:
            states = {batch: engine.transfer_check_status(batch) for batch in pending}
            good = good and all(state >= 0 for state in states.values())
            pending = [batch for batch, state in states.items() if state == 0]
            if pending and time.monotonic() > end:
                return False
            if pending:
                time.sleep(POLL_S)
        return good

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
