"""The lab itself: real namespaces, a real TCP blast. Without root or iproute2: skipped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rig import autogroup, net
from benchmarks.rig import lab as lab_module
from benchmarks.rig.lab import Lab, clean
from benchmarks.rig.net import LabError, Node

MIB = 1024 * 1024
STORE, P1 = Node("store", 1), Node("p1", 11)

SENDER = """
import socket, sys
server = socket.create_server((sys.argv[1], 9000))
print("READY", flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(bytes(int(sys.argv[2])))
    peer.close()
"""
READER = """
import socket, sys, time
began, got = time.monotonic(), 0
with socket.create_connection((sys.argv[1], 9000), timeout=30) as peer:
    while chunk := peer.recv(1 << 20):
        got += len(chunk)
print(got, time.monotonic() - began)
"""


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of this test alone, so that a benchmark that runs beside it is left in peace."""
    if reason := lab_module.missing():
        pytest.skip(reason)
    name = f"dptest{os.getpid()}"
    yield name
    clean(name)


def blast(lab: Lab, network: net.Network, amount: int) -> float:
    """Bytes per second from the store node to p1."""
    address = STORE.address(network)
    sender = subprocess.Popen(
        [*lab.words("store"), sys.executable, "-c", SENDER, address, str(amount)],
        stdout=subprocess.PIPE,
    )
    try:
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"READY\n"
        reader = [*lab.words("p1"), sys.executable, "-c", READER, address]
        done = subprocess.run(reader, capture_output=True, text=True, check=True)
    finally:
        sender.kill()
        sender.wait()
        if sender.stdout is not None:
            sender.stdout.close()
    got, seconds = done.stdout.split()
    assert int(got) == amount
    return amount / float(seconds)


def test_the_storage_nic_has_its_rate_and_the_kernel_counts_it(prefix: str) -> None:
    with Lab((STORE, P1), prefix) as lab:
        lab.shape(["p1"], 160_000_000)
        before = lab.counters()
        shaped = blast(lab, "storage", 8 * MIB)
        after = lab.counters()
        # 160 Mbit/s are 20 MB/s; the burst of the bucket is soon used up.
        assert 14e6 < shaped < 21e6
        read = after["p1"].since(before["p1"])
        sent = after["store"].since(before["store"])
        assert 8 * MIB <= read.storage_read <= 1.06 * 8 * MIB
        assert 8 * MIB <= sent.storage_written <= 1.06 * 8 * MIB
        assert read.compute_read < 10_000
        assert blast(lab, "compute", 32 * MIB) > 4 * shaped
        lab.shape(["p1"], 0)
        assert blast(lab, "storage", 32 * MIB) > 4 * shaped
    assert lab_module._namespaces(prefix) == []


def test_a_killed_run_leaves_nothing_for_the_next(prefix: str) -> None:
    for command in net.build_commands(prefix, [STORE]):
        lab_module.run(command)
    words = [*net.enter_words(prefix, "store"), "sleep", "60"]
    left = subprocess.Popen(words)
    while left.pid not in map(int, lab_module.run(pids(prefix)).split()):
        time.sleep(0.01)
    with Lab((STORE, P1), prefix) as lab:
        assert left.wait(5) == -9
        assert set(lab.counters()) == {"store", "p1"}


def pids(prefix: str) -> net.Command:
    return ("ip", "netns", "pids", net.namespace(prefix, "store"))


def test_one_lab_at_a_time(prefix: str) -> None:
    with Lab((STORE,), prefix):
        with pytest.raises(LabError, match="another run has the lab"):
            Lab((STORE,), prefix).__enter__()
        with pytest.raises(LabError, match="another run"):
            clean(prefix)
    assert clean(prefix) == []


def test_a_lab_that_cannot_be_built_is_taken_down(prefix: str) -> None:
    twice = (STORE, Node("store", 2))
    with pytest.raises(LabError, match="exists"):
        Lab(twice, prefix).__enter__()
    assert lab_module._namespaces(prefix) == []


def test_threads_started_inside_are_on_the_node(prefix: str) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(os.stat("/proc/thread-self/ns/net").st_ino)

    with Lab((STORE,), prefix) as lab:
        home = os.stat("/proc/thread-self/ns/net").st_ino
        with lab.inside("store"):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            look()
        look()
        there = os.stat(f"{net.NETNS_DIR}/{prefix}-store").st_ino
    assert seen == [there, there, home]


def test_scheduling_groups_are_off_meanwhile_and_back_afterwards(tmp_path: Path) -> None:
    setting, memory = tmp_path / "setting", tmp_path / "memory"
    autogroup.switch_off(memory, setting)
    autogroup.restore(memory, setting)
    assert not setting.exists()  # a kernel without them
    for before in ("0", "1"):
        setting.write_text(f"{before}\n")
        autogroup.switch_off(memory, setting)
        assert setting.read_text().strip() == "0"
        autogroup.switch_off(memory, setting)  # after a killed run
        autogroup.restore(memory, setting)
        assert setting.read_text().strip() == before
        assert not memory.exists()


def test_without_root_or_iproute2_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in lab_module.missing()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab_module.shutil, "which", lambda name: None)
    assert "apt-get install -y iproute2 util-linux" in lab_module.missing()
    with pytest.raises(LabError, match="not found"):
        clean("dptest-none")
