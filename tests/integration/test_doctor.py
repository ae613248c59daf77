"""`dualpath doctor` on real engines: a healthy stack, and one with broken hops."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_metrics import kv_bytes
from second_path_rig import Duo, duo, prompt
from session_api import Session

from agent_runtime.stack.stack import RunningStack


def doctor(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report."""
    done = subprocess.run(
        [sys.executable, "-m", "agent_runtime.cli", "doctor", "--json", *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {hop["name"]: hop["status"] for hop in report["hops"]}


def master_of(stack: RunningStack) -> str:
    """The URL of its HTTP port."""
    master = next(part for part in stack.layout.components if part.kind == "master")
    return f"http://127.0.0.1:{master.ports['metrics']}"


def is_gone(stack: RunningStack, report: dict[str, Any]) -> bool:
    """No object of the doctor's page is listed by the master."""
    note = next(note for note in report["notes"] if note.startswith("the page: "))
    first = note.split(" named ")[1].removesuffix(" ...")
    assert "dualpath-doctor-" in first
    found = httpx.get(f"{master_of(stack)}/batch_query_keys", params={"keys": first}).json()
    return not found["data"][first]["ok"]


def tokens(n: int, seed: int) -> list[int]:
    return [10 + (seed * 7919 + i * i * 31 + i) % 190 for i in range(n)]


def test_a_healthy_stack_is_fine_and_stays_as_it_was(pair: RunningStack) -> None:
    session = Session(pair.router_url)
    first = session.turn(token_ids=tokens(400, 3))
    first.raise_for_status()
    code, report = doctor("--run-dir", str(pair.run_dir))
    assert (code, report["problems"]) == (0, []), report
    assert {part["name"] for part in report["components"]} >= {"router", "master", "store"}
    assert all(part["answers"] for part in report["components"])
    assert [hooks["engine"] for hooks in report["hooks"]] == ["prefill-0", "decode-0"]
    assert all(hooks["live"] and not hooks["dead"] for hooks in report["hooks"])
    assert statuses(report) == {
        "doctor -> master": "OK",
        "doctor -> store": "OK",
        "find in the store": "OK",
        "store -> doctor": "OK",
        "find by the master's HTTP port": "OK",
        "store -> prefill-0": "OK",
        "store -> decode-0": "OK",
        "store -> decode-0 -> prefill-0": "OK",
        "prefill-0 -> decode-0": "NOT RUN",
        "remove from the store": "OK",
    }
    assert any("RDMA" in note for note in report["notes"])
    assert is_gone(pair, report)
    # Nothing was flushed: what the session has computed is still on the prefill engine's device.
    second = session.turn(token_ids=tokens(30, 4)).json()
    assert second["usage"]["prefill"]["device"] == 400 // 16 * 16


def test_by_its_router_alone(pair: RunningStack) -> None:
    code, report = doctor("--router", pair.router_url)
    assert (code, report["problems"]) == (0, []), report
    assert statuses(report)["find by the master's HTTP port"] == "NOT RUN"
    code, report = doctor("--router", pair.router_url, "--store-admin", master_of(pair))
    assert code == 0
    assert statuses(report)["find by the master's HTTP port"] == "OK"


def test_the_table_for_people(pair: RunningStack) -> None:
    words = [sys.executable, "-m", "agent_runtime.cli", "doctor", "--run-dir", str(pair.run_dir)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 9 hops are fine" in done.stdout
    assert "store -> decode-0 -> prefill-0" in done.stdout


def test_the_books_stay_balanced_and_bytes_are_those_of_the_page(pair: RunningStack) -> None:
    engines = {engine.role: engine.url for engine in pair.engines}
    before = {role: kv_bytes(url) for role, url in engines.items()}
    assert doctor("--run-dir", str(pair.run_dir))[0] == 0
    time.sleep(2.5)  # idle books are compared once a second
    for url in engines.values():
        assert "books_differ" not in httpx.get(f"{url}/metrics", timeout=30).text
    after = {role: kv_bytes(url) for role, url in engines.items()}
    page = 16 * 4096
    assert after["prefill"]["store_to_prefill"] - before["prefill"]["store_to_prefill"] == page
    assert after["decode"]["store_to_decode"] - before["decode"]["store_to_decode"] == 2 * page


def test_nothing_to_examine(tmp_path: Path) -> None:
    code, report = doctor("--run-dir", str(tmp_path))
    assert code == 2
    assert "status.json" in report["cannot_run"]
    code, report = doctor("--router", "http://127.0.0.1:9")
    assert code == 2
    assert "does not answer" in report["cannot_run"]


# --- broken hops ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Duo]:
    """P's one-sided reads fail, and its first read from the store; small pools. Both engines end
    when a page of their host pools is lost or in two places."""
    fault = {"DUALPATH_ENGINE_FAULT": "peer_timeout,store_missing:1"}
    folder = tmp_path_factory.mktemp("broken")
    with duo(model_dir, folder, prefill=fault, max_total_tokens=4096, hicache_ratio=2.0) as made:
        yield made


def test_a_broken_hop_is_named_and_no_other(broken: Duo) -> None:
    code, report = doctor("--run-dir", str(broken.stack.run_dir))
    assert code == 1
    assert report["problems"] == ["store -> prefill-0", "store -> decode-0 -> prefill-0"]
    hops = {hop["name"]: hop for hop in report["hops"]}
    assert "no such object" in hops["store -> prefill-0"]["why"]
    assert "one-sided read" in hops["store -> decode-0 -> prefill-0"]["why"]
    assert "transfer engine" in hops["store -> decode-0 -> prefill-0"]["fix"]
    assert is_gone(broken.stack, report)
    broken.flush()


def test_full_pools_are_probed_without_evicting_and_flushed_pools_too(broken: Duo) -> None:
    rng = random.Random(3)
    for _ in range(8):  # 8 * 100 pages into pools of 512
        broken.without_plan(prompt(rng, 100), output=1)
    broken.settle()
    code, report = doctor("--run-dir", str(broken.stack.run_dir))
    assert (code, report["problems"]) == (1, ["store -> decode-0 -> prefill-0"])
    broken.flush()
    code, report = doctor("--run-dir", str(broken.stack.run_dir))
    assert (code, report["problems"]) == (1, ["store -> decode-0 -> prefill-0"])
    broken.flush()
    assert all(broken.fallbacks(role).get("books_differ", 0) == 0 for role in ("prefill", "decode"))


def test_without_its_storage_node(broken: Duo) -> None:
    broken.stack.kill("store")
    broken.stack.wait_for("store", "exited", 5.0)
    code, report = doctor("--run-dir", str(broken.stack.run_dir))
    assert code == 1
    assert report["problems"][0] == "store"
    assert "doctor -> store" in report["problems"]
    assert statuses(report)["decode-0 -> prefill-0"] == "BROKEN"
