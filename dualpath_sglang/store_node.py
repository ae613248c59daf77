"""`python -m dualpath_sglang.store_node --master H:P`: the process that owns the store's memory.

Engines are pure clients (segment size 0); without an owner of memory nothing can be stored.
Prints READY when the segment is mounted and stays until SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

LOCAL_BUFFER_BYTES = 16 * 1024 * 1024


def main() -> int:
    options = _parser().parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    code = store.setup(
        options.host,
        "P2PHANDSHAKE",
        options.segment_bytes,
        LOCAL_BUFFER_BYTES,
        options.protocol,
        options.device_name,
        options.master,
    )
    if code != 0:
        print(
            f"store node: mounting {options.segment_bytes} bytes at the master {options.master} "
            f"failed with code {code}; is the master up, and is the memory there?",
            file=sys.stderr,
        )
        return 1
    print("READY", flush=True)
    stopped.wait()
    store.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dualpath_sglang.store_node")
    parser.add_argument("--master", required=True, help="host:port of mooncake_master")
    parser.add_argument("--host", default="127.0.0.1", help="address engines reach this node at")
    parser.add_argument("--segment-bytes", type=int, required=True, help="memory to offer")
    parser.add_argument("--protocol", default="tcp", choices=["tcp", "rdma"])
    parser.add_argument("--device-name", default="", help="RDMA device")
    return parser


if __name__ == "__main__":
    sys.exit(main())
