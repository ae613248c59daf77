"""SGLang's transfer threads on tables from which a room vanishes between looking and taking.

What the scheduler thread does to them by chance happens here at a chosen look. The class is the
real one, without its engine: one dummy destination, so that nothing is sent.

    python vanishing_rooms.py COMMON_CONN MOONCAKE_CONN    the same with these files of SGLang; exit
                                                           status 0: no thread ended
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import sys
import warnings
from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy

from dualpath_sglang.cpu.shims import install_shims

COMMON = "sglang.srt.disaggregation.common.conn"
MOONCAKE = "sglang.srt.disaggregation.mooncake.conn"
ROOM, NEXT_ROOM = 7, 8
LOOKS = 6
"""More often than that no thread asks for one room."""


def vanishing(kind: type[dict[int, Any]], look: int) -> type[dict[int, Any]]:
    """A table that loses ROOM right after it was asked for the `look`-th time whether it has it."""

    class Vanishing(kind):  # type: ignore[valid-type, misc]
        looks = 0

        def __contains__(self, room: object) -> bool:
            found = super().__contains__(room)
            if room == ROOM:
                self.looks += 1
                if self.looks == look:
                    dict.pop(self, ROOM, None)
            return bool(found)

    return Vanishing


class Threads:
    """Of a prefill engine's KV manager, run in the caller's thread. `statuses`, `infos`: types of
    its tables."""

    def __init__(self, conn: ModuleType, statuses: type, infos: type) -> None:
        manager = conn.MooncakeKVManager.__new__(conn.MooncakeKVManager)
        manager.__dict__.update(
            request_status=statuses(),
            transfer_infos=infos(),
            req_to_decode_prefix_len={},
            failure_records={},
            deferred_bootstrap=None,
            enable_trace=False,
            enable_staging=False,
            enable_deferred_decode_kv_release=False,
            bootstrap_port=0,
            server_socket=None,
            _stopped=False,
            _worker_threads=[],
            _staging_outstanding=defaultdict(int),
            _staging_ctx=None,
            _deferred_ack_targets={},
            _deferred_ack_poisoned_rooms=set(),
        )
        self.conn, self.manager = conn, manager

    def transfer(self) -> list[int]:
        """Chunks of both rooms through `transfer_worker`; the rooms that were concluded as sent.
        Raises what ends the thread."""
        chunks: queue.Queue[Any] = queue.Queue()
        for room in (ROOM, NEXT_ROOM):
            self.manager.request_status[room] = self.conn.KVPoll.WaitingForInput
            destination = SimpleNamespace(is_dummy=True, room=room)
            self.manager.transfer_infos[room] = {"session:1": destination}
            pages = numpy.arange(2)
            chunks.put(self.conn.TransferKVChunk(room, pages, slice(0, 2), True, 0, None))
        chunks.put(None)
        self.manager.transfer_worker(chunks, None)
        success = self.conn.KVPoll.Success
        return [room for room, s in self.manager.request_status.items() if s == success]

    def hear(self) -> None:
        """A second rank of a decode engine tells of both rooms. Raises what ends the thread."""
        self.manager.resolve_kv_replica_factor = lambda infos: None
        told: queue.Queue[Any] = queue.Queue()
        for room in (ROOM, NEXT_ROOM):
            self.manager.transfer_infos[room] = {"session:0": "told before"}
            told.put(message(room))
        manager = self.manager

        def receive(_: Any) -> Any:
            def take() -> Any:
                if told.empty():
                    manager._stopped = True
                    return None
                return told.get()

            return take

        manager._make_worker_recv = receive
        threading, self.conn.threading = self.conn.threading, SimpleNamespace(Thread=_Inline)
        try:
            manager.start_prefill_thread()
        finally:
            self.conn.threading = threading


class _Inline:
    """`threading.Thread` that runs at `start`, so that its exception reaches the caller."""

    def __init__(self, target: Any, daemon: bool) -> None:
        self.start = target


def message(room: int) -> list[bytes]:
    """As a decode engine sends it when it has memory for a room."""
    text = [str(room), "10.0.0.1", "1", "session:1"]
    return [*(part.encode() for part in text), b"", b"0", b"", b"1", b"0", b""]


def installed() -> ModuleType:
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(MOONCAKE)


def ended(conn: ModuleType, kind: type[dict[int, Any]]) -> list[str]:
    """Which thread ended for which look at which table, a sentence each. `kind`: of the table of
    destinations."""
    found = []
    for look in range(1, LOOKS):
        plain: type = dict
        cases = {
            f"transfer, status, look {look}": (vanishing(plain, look), kind, "transfer"),
            f"transfer, destinations, look {look}": (plain, vanishing(kind, look), "transfer"),
            f"bootstrap, destinations, look {look}": (plain, vanishing(kind, look), "hear"),
        }
        for name, (statuses, infos, what) in cases.items():
            threads = Threads(conn, statuses, infos)
            try:
                done = getattr(threads, what)()
            except (RuntimeError, KeyError) as error:
                found.append(f"{name}: {error}")
                continue
            if what == "transfer" and NEXT_ROOM not in done:
                found.append(f"{name}: the next room was not sent")
    return found


def main() -> int:
    installed()
    for name, file in zip((COMMON, MOONCAKE), sys.argv[1:], strict=True):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        # The metrics that the module makes are there already.
        _forget_metrics()
        spec.loader.exec_module(module)
    found = ended(sys.modules[MOONCAKE], dict)
    print("\n".join(found))
    return len(found)


def _forget_metrics() -> None:
    from prometheus_client import REGISTRY

    for collector in list(REGISTRY._collector_to_names):
        REGISTRY.unregister(collector)


if __name__ == "__main__":
    sys.exit(main())
