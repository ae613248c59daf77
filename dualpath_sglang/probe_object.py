"""`python -m dualpath_sglang.probe_object`: one page of random bytes in the store, for a while.

Writes the objects, finds them, reads them back, waits until its standard input ends, and removes
them: also when the doctor that started it is killed. One JSON line on standard output for each
step; the first that fails is the last before `remove`.

    {"step": "mount", "error": ""} {"step": "write", ...} {"step": "find"} {"step": "read"}
    ... {"step": "remove", "error": ""}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from dualpath_sglang.contract.probe import seeded_parts

LOCAL_BUFFER_BYTES = 16 * 1024 * 1024


class StepError(Exception):
    """What the store said."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: every step went well, the objects are removed."""
    options = _parser().parse_args(argv)
    parts = seeded_parts(options.seed, len(options.keys), options.part_bytes)
    objects = dict(zip(options.keys, parts, strict=True))
    store: Any = None

    def mount() -> None:
        nonlocal store
        store = mounted(options)

    well = run("mount", mount)
    if not well:
        return 1
    steps: dict[str, Callable[[], None]] = {
        "write": lambda: write(store, objects),
        "find": lambda: find(store, objects),
        "read": lambda: read(store, objects),
    }
    well = all(run(name, step) for name, step in steps.items())
    sys.stdin.read()
    well = run("remove", lambda: remove(store, list(objects))) and well
    store.close()
    return 0 if well else 1


def run(name: str, step: Callable[[], None]) -> bool:
    """One step and its line."""
    began, error = time.monotonic(), ""
    try:
        step()
    except Exception as failure:
        error = str(failure) or type(failure).__name__
    seconds = round(time.monotonic() - began, 4)
    print(json.dumps({"step": name, "error": error, "seconds": seconds}), flush=True)
    return not error


def mounted(options: argparse.Namespace) -> Any:
    """A client that offers no memory. Raises StepError."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    buffer = max(LOCAL_BUFFER_BYTES, 4 * options.part_bytes)
    code = store.setup(
        options.host,
        "P2PHANDSHAKE",
        0,
        buffer,
        options.protocol,
        options.device_name,
        options.master,
        tenant_id=options.tenant,
    )
    if code != 0:
        raise StepError(f"no client at the master {options.master}: code {code}")
    return store


def write(store: Any, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        if (code := store.put(key, data)) != 0:
            raise StepError(f"{len(data)} bytes could not be written: code {code}")


def find(store: Any, objects: dict[str, bytes]) -> None:
    missing = [key for key in objects if store.is_exist(key) != 1]
    if missing:
        raise StepError(f"{len(missing)} of {len(objects)} objects are not listed")


def read(store: Any, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        got = bytes(store.get(key))
        if not got:
            raise StepError("an object that was written cannot be read")
        if got != data:
            raise StepError(f"an object came back with other bytes ({len(got)} of {len(data)})")


def remove(store: Any, keys: list[str]) -> None:
    """Also from under the lease that reading has just renewed: nobody else knows these keys."""
    codes = [store.remove(key, True) for key in keys if store.is_exist(key) != 0]
    if bad := [code for code in codes if code != 0]:
        raise StepError(f"{len(bad)} of {len(keys)} objects stay: code {bad[0]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dualpath_sglang.probe_object")
    parser.add_argument("--master", required=True, help="host:port of mooncake_master")
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine")
    parser.add_argument("--protocol", default="tcp", choices=["tcp", "rdma"])
    parser.add_argument("--device-name", default="", help="RDMA device")
    parser.add_argument("--tenant", default="default", help="whose objects")
    parser.add_argument("--seed", required=True, help="of the bytes")
    parser.add_argument("--part-bytes", type=int, required=True, help="bytes of one object")
    parser.add_argument("keys", nargs="+", help="the objects of one page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
