"""The lab as a resource: built, shaped, read, and always taken down.

Needs root and iproute2. One lab per prefix at a time (a file lock that goes with its process).
What a killed run has left behind, namespaces and processes within them, is removed before the
next lab is built and by `clean`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from benchmarks.rig import autogroup, net
from benchmarks.rig.net import Command, LabError, Node, NodeBytes

PREFIX = "dprig"
CLONE_NEWNET = 0x40000000
PROCESS_END_S = 10.0


def missing() -> str:
    """Why no lab can be built here, in words; empty when it can."""
    if os.geteuid() != 0:
        return "root is needed to make network namespaces"
    programs = [name for name in ("ip", "tc", "nsenter") if shutil.which(name) is None]
    if programs:
        packages = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux"}
        needed = " ".join(sorted({packages[name] for name in programs}))
        return f"{', '.join(programs)} not found: apt-get install -y {needed}"
    probe = f"dualpath-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"this machine gives no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True)
    return ""


def run(command: Command) -> str:
    """The command's output. Raises LabError with its own words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """`with Lab(nodes) as lab:`; everything is gone afterwards, whatever happened."""

    def __init__(self, nodes: Sequence[Node], prefix: str = PREFIX) -> None:
        self.nodes = tuple(nodes)
        self.prefix = prefix
        self._lock: IO[str] | None = None

    def __enter__(self) -> Lab:
        if reason := missing():
            raise LabError(f"no two-network lab: {reason}")
        self._lock = _lock(self.prefix)
        try:
            _remove(self.prefix)
            for command in net.build_commands(self.prefix, self.nodes):
                run(command)
            autogroup.switch_off(_autogroup_memory(self.prefix))
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._down()

    def _down(self) -> None:
        try:
            _remove(self.prefix)
        finally:
            if self._lock is not None:
                self._lock.close()

    def shape(self, names: Sequence[str], bits_per_s: int) -> None:
        """The rate of these nodes' storage NICs; 0: as fast as the machine can."""
        nodes = [node for node in self.nodes if node.name in names]
        commands = net.unshape_commands(self.prefix, nodes)
        if bits_per_s:
            commands = net.shape_commands(self.prefix, nodes, bits_per_s)
        for command in commands:
            run(command)

    def counters(self) -> dict[str, NodeBytes]:
        """Bytes of every NIC, by node, from the kernel."""
        return net.parse_counters(run(net.counters_command(self.prefix)), self.nodes)

    def words(self, name: str) -> Command:
        """What to put before a command so that it runs on a node."""
        return net.enter_words(self.prefix, name)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread, and the threads and processes it starts, are on a node meanwhile."""
        with (
            open("/proc/thread-self/ns/net", encoding="ascii") as home,
            open(f"{net.NETNS_DIR}/{net.namespace(self.prefix, name)}", encoding="ascii") as there,
        ):
            _set_namespace(there)
            try:
                yield
            finally:
                _set_namespace(home)


def clean(prefix: str = PREFIX) -> list[str]:
    """Remove what a killed run has left; the names of its namespaces. Raises LabError when a
    run is going on."""
    if reason := missing():
        raise LabError(f"cannot clean up: {reason}")
    with _lock(prefix):
        return _remove(prefix)


def _lock(prefix: str) -> IO[str]:
    path = Path(tempfile.gettempdir()) / f"{prefix}.lock"
    file = open(path, "a+", encoding="ascii")  # noqa: SIM115 -- held while the lab exists
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise LabError(f"another run has the lab (process {holder}); wait for it") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _autogroup_memory(prefix: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{prefix}.autogroup"


def _remove(prefix: str) -> list[str]:
    """End all processes in the prefix's namespaces, then delete the namespaces."""
    autogroup.restore(_autogroup_memory(prefix))
    found = _namespaces(prefix)
    for name in found:
        _end_processes(name)
        run(("ip", "netns", "del", name))
    return found


def _namespaces(prefix: str) -> list[str]:
    listed = run(("ip", "-j", "netns", "list")).strip()
    names = [entry["name"] for entry in json.loads(listed or "[]")]
    return [name for name in names if name.startswith(f"{prefix}-")]


def _end_processes(name: str) -> None:
    deadline = time.monotonic() + PROCESS_END_S
    while pids := [int(p) for p in run(("ip", "netns", "pids", name)).split()]:
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids} in namespace {name} do not end")
        for pid in pids:
            if pid == os.getpid():
                raise LabError(f"this process is still inside namespace {name}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _set_namespace(file: IO[str]) -> None:
    # os.setns came with Python 3.12 only.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file.fileno(), CLONE_NEWNET):
        raise LabError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")
