"""Two real Mooncake transfer engines over TCP on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("mooncake.engine")

TWO_ENGINES = """
import ctypes, sys
from dualpath_sglang.secondpath.pool import Entries
from dualpath_sglang.secondpath.transport import MooncakeTransport
SIZE = 1 << 20
def region(value):
    buffer = (ctypes.c_char * SIZE)()
    ctypes.memset(buffer, value, SIZE)
    return buffer, ctypes.addressof(buffer)
here, at_here = region(1)
there, at_there = region(2)
p = MooncakeTransport("127.0.0.1", "tcp", "", at_here, SIZE)
d = MooncakeTransport("127.0.0.1", "tcp", "", at_there, SIZE)
"""


def run(body: str, engines: str = TWO_ENGINES) -> str:
    """In a process of its own: Mooncake logs to the standard streams and has no way to stop."""
    env = os.environ | {"MC_FORCE_TCP": "1"}
    done = subprocess.run(
        [sys.executable, "-c", engines + body],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_many_scattered_reads_arrive() -> None:
    out = run(
        """
step, count = 1024, 600
for i in range(count):
    ctypes.memset(at_there + i * step, i % 251, step)
order = [(i * 7) % count for i in range(count)]
reads = Entries([at_here + i * step for i in range(count)],
                [at_there + j * step for j in order], [step] * count)
ok = p.read(d.session, reads, 10).whole
right = all(here[i * step : (i + 1) * step] == there[j * step : (j + 1) * step]
            for i, j in enumerate(order))
print("RESULT", ok, right)
"""
    )
    assert "RESULT True True" in out


def test_an_address_outside_the_peers_region_fails() -> None:
    out = run(
        """
reads = Entries([at_here], [at_there + SIZE], [4096])
print("RESULT", p.read(d.session, reads, 10).whole)
"""
    )
    assert "RESULT False" in out


def test_ipv6() -> None:
    """Mooncake takes addresses of one kind only, as its environment says."""
    script = TWO_ENGINES.replace('"127.0.0.1"', '"::1"').replace(
        "import ctypes, sys", "import ctypes, os, sys; os.environ['MC_USE_IPV6'] = '1'"
    )
    out = run(
        """
whole = p.read(d.session, Entries([at_here], [at_there], [4096]), 10).whole
print("RESULT", d.session.startswith("[::1]:"), whole, here[:4096] == there[:4096])
""",
        script,
    )
    assert "RESULT True True True" in out


def test_a_dead_peer_fails_quickly() -> None:
    out = run(
        """
import time
began = time.monotonic()
reading = p.read("127.0.0.1:1", Entries([at_here], [at_there], [4096]), 10)
print("RESULT", reading.whole, reading.is_over(), time.monotonic() - began < 5)
"""
    )
    assert "RESULT False True True" in out


def test_a_renewed_engine_reads_again() -> None:
    out = run(
        """
before = p.read(d.session, Entries([at_here], [at_there], [4096]), 10).whole
p.renew()
after = p.read(d.session, Entries([at_here + 4096], [at_there], [4096]), 10).whole
print("RESULT", before, after, here[4096:8192] == there[:4096])
"""
    )
    assert "RESULT True True True" in out
