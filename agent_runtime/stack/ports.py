"""Ports for all components, picked at once.

Picked ports lie below the kernel's ephemeral range: an engine binds its port many seconds after
it was picked, and an outgoing connection of any process could take an ephemeral one meanwhile.
For the same reason every port is held with a file lock, so that two stacks that start side by
side never pick the same one. The lock goes with the process, also when it is killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dualpath_sglang.contract.errors import ConfigError, StartupError

LOWEST, HIGHEST = 20_000, 30_000
"""Below the router's usual port (30000), which one stack must not take from another."""


@dataclass(frozen=True)
class PortRequest:
    """One port to hold. `setting` names the setting that asks for it; `wanted` 0 is any."""

    key: str
    setting: str
    wanted: int = 0


class PortLease:
    """Ports by key, held until `release`."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._locks: list[IO[str]] = []

    def add(self, key: str, port: int, lock: IO[str]) -> None:
        self.ports[key] = port
        self._locks.append(lock)

    def release(self) -> None:
        for lock in self._locks:
            lock.close()
        self._locks.clear()


def lease(requests: Iterable[PortRequest], rng: random.Random | None = None) -> PortLease:
    """Hold one free port per request. Raises ConfigError for a wanted port that is taken."""
    rng = rng or random.Random()
    requests = list(requests)
    _check_wanted(requests)
    held = PortLease()
    try:
        # Wanted ports first, so that a picked one cannot take them.
        for request in sorted(requests, key=lambda r: r.wanted == 0):
            port, lock = _hold(request) if request.wanted else _pick(rng)
            held.add(request.key, port, lock)
    except BaseException:
        held.release()
        raise
    return held


def is_free(port: int) -> bool:
    """No socket listens on the port, on any address of IPv4 and IPv6."""
    return _can_bind(socket.AF_INET, port) and _can_bind(socket.AF_INET6, port)


def _can_bind(family: socket.AddressFamily, port: int) -> bool:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return True  # this machine has no such addresses
    with probe:
        # Connections in TIME_WAIT are no obstacle: servers set this option too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
    return True


def _check_wanted(requests: list[PortRequest]) -> None:
    by_port: dict[int, PortRequest] = {}
    for request in requests:
        if not 0 <= request.wanted <= 65535:
            message = f"{request.setting}: {request.wanted} is not a port (0 to 65535)"
            raise ConfigError(message, field=request.setting)
        if request.wanted == 0:
            continue
        first = by_port.setdefault(request.wanted, request)
        if first is not request:
            raise ConfigError(
                f"{first.setting} and {request.setting} both ask for port {request.wanted}",
                field=request.setting,
            )


def _hold(request: PortRequest) -> tuple[int, IO[str]]:
    lock = _lock(request.wanted)
    if lock is None or not is_free(request.wanted):
        if lock is not None:
            lock.close()
        raise ConfigError(
            f"{request.setting}: port {request.wanted} is in use; stop what uses it, choose "
            "another port, or 0 to let the stack pick one",
            field=request.setting,
        )
    return request.wanted, lock


def _pick(rng: random.Random) -> tuple[int, IO[str]]:
    for _ in range(2_000):
        port = rng.randrange(LOWEST, HIGHEST)
        lock = _lock(port)
        if lock is None:
            continue
        if is_free(port):
            return port, lock
        lock.close()
    raise StartupError(f"no free port between {LOWEST} and {HIGHEST}")


def _lock(port: int) -> IO[str] | None:
    """The port's lock file, locked; None when another stack (or this one) holds it."""
    folder = Path(tempfile.gettempdir()) / f"dualpath-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = open(folder / str(port), "w", encoding="ascii")  # noqa: SIM115 -- held on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
