"""The client of the master's admin port: a stub for its faults, then the real master."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from chains import Listed

from agent_runtime.planning.existence import Existence
from agent_runtime.planning.store_admin import MAX_KEYS, StoreAdmin
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.errors import StoreFailure
from dualpath_sglang.contract.pages import KeyLayout, page_hashes

LAYOUT = KeyLayout("org-modèl v1.5+x/ü:_", ("_0_k", "_0_v"), 16, 1)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def stub_master(handler: Handler) -> AsyncIterator[StoreAdmin]:
    app = web.Application()
    app.router.add_get("/batch_query_keys", handler)
    runner = web.AppRunner(app, max_line_size=2**20, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        yield StoreAdmin(http, f"http://127.0.0.1:{port}/", timeout_s=0.3)
    await runner.cleanup()


async def test_keys_arrive_as_they_are() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.extend(request.query["keys"].split(","))
        return web.json_response({"data": {key: {"ok": "0_k" in key} for key in seen}})

    keys = list(LAYOUT.object_keys("ab" * 32))
    async with stub_master(handler) as admin:
        assert await admin.exist(keys) == [True, False]
        assert await admin.exist([]) == []
    assert seen == keys


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (503, "master is not active", "says 503: master is not active"),
        (200, "not json", "makes no sense"),
        (200, json.dumps([]), "makes no sense"),
        (200, json.dumps({"data": {}}), "makes no sense"),
        (200, json.dumps({"data": {"k": None}}), "makes no sense"),
    ],
)
async def test_a_strange_answer_is_a_failure(status: int, body: str, says: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with stub_master(handler) as admin:
        with pytest.raises(StoreFailure, match=says):
            await admin.exist(["k"])


async def test_no_answer_and_no_master() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with stub_master(handler) as admin:
        with pytest.raises(StoreFailure, match=r"no answer in 0\.3 s"):
            await admin.exist(["k"])
    async with aiohttp.ClientSession() as http:
        gone = StoreAdmin(http, f"http://127.0.0.1:{free_port()}", timeout_s=1.0)
        with pytest.raises(StoreFailure, match="is gone"):
            await gone.exist(["k"])
        with pytest.raises(StoreFailure, match="has a comma"):
            await gone.exist(["a,b"])


# --- the real master ----------------------------------------------------------------------

WRITER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 32 << 20, 16 << 20, "tcp", "", sys.argv[1]) == 0
for line in sys.stdin:
    order, key = line.rstrip("\\n").split(" ", 1)
    code = store.put(key, b"page") if order == "put" else store.remove(key)
    print(code, flush=True)
store.close()
"""


class Writer:
    """A process that owns a store segment and puts or removes objects on order."""

    def __init__(self, master: str, log: Path) -> None:
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, master],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={"MC_FORCE_TCP": "1", "PATH": ""},
        )

    def order(self, order: str, key: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order} {key}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.strip().lstrip("-").isdigit():
                return int(line)
        raise AssertionError("the writer is gone")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[tuple[Writer, str]]:
    program = shutil.which("mooncake_master", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("mooncake_master is not installed in this environment")
    rpc, admin = free_port(), free_port()
    with (tmp_path / "master.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--rpc_port={rpc}", f"--metrics_port={admin}"], stdout=log, stderr=log
        )
        try:
            wait_for_port(rpc)
            writer = Writer(f"127.0.0.1:{rpc}", tmp_path / "writer.log")
            yield writer, f"http://127.0.0.1:{admin}"
            writer.close()
        finally:
            process.terminate()
            process.wait(10)


async def test_real_master_long_queries_holes_and_odd_names(master: tuple[Writer, str]) -> None:
    writer, url = master
    hashes = page_hashes([i * 31 % 997 for i in range(16 * 700)], 16)
    stored = hashes[:650]
    for page in stored:
        for key in LAYOUT.object_keys(page):
            assert writer.order("put", key) == 0
    async with aiohttp.ClientSession() as http:
        admin = StoreAdmin(http, url, timeout_s=5.0)
        keys = [key for page in stored for key in LAYOUT.object_keys(page)]
        missing = [f"missing_{i}" for i in range(MAX_KEYS - len(keys))]
        found = await admin.exist(keys + missing)
        assert found == [True] * len(keys) + [False] * len(missing)
        existence = Existence(admin, LAYOUT, clock=ManualClock(), ttl_s=3.0, max_known=10_000)
        assert (await existence.longest_prefix(Listed(hashes))).pages == 650
        writer.order("remove", LAYOUT.object_keys(hashes[77])[1])
        fresh = Existence(admin, LAYOUT, clock=ManualClock(), ttl_s=3.0, max_known=10_000)
        assert (await fresh.longest_prefix(Listed(hashes))).pages == 77


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")
