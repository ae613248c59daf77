"""The process that writes the doctor's page: a stub store for its faults, a stub process, and the
real Mooncake where its programs are installed."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.doctor import store_object
from agent_runtime.doctor.store_object import ProbeObject, Spec, local_address
from dualpath_sglang import probe_object
from dualpath_sglang.contract.probe import seeded_parts

KEYS = ["a_0_k", "a_0_v"]


class StubStore:
    """A store in a dictionary; `faults` change its answers."""

    def __init__(self, **faults: Any) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults = faults
        self.closed = False
        self.removed: list[tuple[str, bool]] = []

    def put(self, key: str, value: bytes) -> int:
        if (code := self.faults.get("put")) and self.objects:
            return int(code)
        self.objects[key] = value
        return 0

    def is_exist(self, key: str) -> int:
        return int(self.faults.get("exist", key in self.objects))

    def get(self, key: str) -> bytes:
        return bytes(self.faults.get("get", self.objects[key]))

    def remove(self, key: str, force: bool) -> int:
        self.removed.append((key, force))
        self.objects.pop(key, None)
        return int(self.faults.get("remove", 0))

    def close(self) -> None:
        self.closed = True


def run(
    store: StubStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, str]]:
    """Exit code, and the error of each step that ran."""
    monkeypatch.setattr(probe_object, "mounted", lambda options: store)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = ["--master", "m:1", "--seed", "s", "--part-bytes", "100", *KEYS]
    code = probe_object.main(words)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {line["step"]: line["error"] for line in lines}


def test_a_page_comes_and_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StubStore()
    written: dict[str, bytes] = {}
    monkeypatch.setattr(store, "close", lambda: None)
    put = store.put
    monkeypatch.setattr(store, "put", lambda k, v: written.update({k: v}) or put(k, v))
    code, errors = run(store, monkeypatch, capsys)
    assert code == 0
    assert errors == dict.fromkeys(("mount", "write", "find", "read", "remove"), "")
    assert written == dict(zip(KEYS, seeded_parts("s", 2, 100), strict=True))
    assert store.objects == {}
    assert store.removed == [(key, True) for key in KEYS]


@pytest.mark.parametrize(
    ("faults", "step", "says"),
    [
        ({"put": -200}, "write", "code -200"),
        ({"exist": 0}, "find", "2 of 2 objects are not listed"),
        ({"get": b""}, "read", "cannot be read"),
        ({"get": b"x" * 100}, "read", "other bytes (100 of 100)"),
        ({"remove": -706}, "remove", "2 of 2 objects stay: code -706"),
    ],
)
def test_a_step_that_fails_is_the_last_but_removal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: dict[str, Any],
    step: str,
    says: str,
) -> None:
    store = StubStore(**faults)
    code, errors = run(store, monkeypatch, capsys)
    assert code == 1
    assert says in errors[step]
    assert [name for name, error in errors.items() if error] == [step]
    assert list(errors)[-1] == "remove"
    assert store.closed


def test_without_a_master_nothing_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Any) -> Any:
        raise probe_object.StepError("no client")

    monkeypatch.setattr(probe_object, "mounted", fail)
    words = ["--master", "m:1", "--seed", "s", "--part-bytes", "100", *KEYS]
    assert probe_object.main(words) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "no client"


# --- the doctor's side of it ----------------------------------------------------------------------

REAL_START = asyncio.create_subprocess_exec
SPEC = Spec("127.0.0.1:1", "tcp", "", "default", "s", 100, tuple(KEYS))


def stub_process(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`script` runs instead of the real process."""

    async def start(*words: Any, **kwargs: Any) -> Any:
        return await REAL_START(sys.executable, "-S", "-c", script, **kwargs)

    monkeypatch.setattr(store_object.asyncio, "create_subprocess_exec", start)


LINE = 'print(\'{"step": "%s", "error": "%s", "seconds": 0.5}\', flush=True)\n'


async def test_steps_in_their_order_and_the_log_of_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "import sys, time\n" + LINE % ("mount", "") + "print('chatter', flush=True)\n"
    script += "print('E1126 store.cpp] no segment', file=sys.stderr, flush=True)\ntime.sleep(0.3)\n"
    script += LINE % ("write", "code -200") + "sys.stdin.read()\n" + LINE % ("remove", "")
    stub_process(monkeypatch, script)
    page = ProbeObject(SPEC)
    assert (await page.step()).name == "mount"
    step = await page.step()
    assert step.error == "code -200 (Mooncake: E1126 store.cpp] no segment)"
    removed = await page.remove()
    assert (removed.name, removed.error, removed.seconds) == ("remove", "", 0.5)


async def test_a_process_that_dies_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_process(monkeypatch, LINE % ("mount", ""))
    page = ProbeObject(SPEC)
    assert (await page.step()).error == ""
    assert "has died" in (await page.step()).error
    assert "has died" in (await page.remove()).error
    monkeypatch.setattr(store_object, "STEP_S", 0.5)
    monkeypatch.setattr(store_object, "KILL_S", 0.1)
    stub_process(monkeypatch, LINE % ("mount", "") + "import time; time.sleep(600)\n")
    page = ProbeObject(SPEC)
    await page.step()
    assert "no end of it" in (await page.step()).error
    assert "no end of it" in (await page.remove()).error


async def test_nothing_to_remove_without_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await ProbeObject(SPEC).remove()).error == ""
    stub_process(monkeypatch, LINE % ("mount", "no client"))
    page = ProbeObject(SPEC)
    assert "no client" in (await page.step()).error
    assert (await page.remove()).error == ""


def test_the_address_of_this_machine() -> None:
    assert local_address("127.0.0.1:5") == "127.0.0.1"
    assert local_address("nonsense") == "127.0.0.1"
    assert local_address("[::1]:5") in ("::1", "127.0.0.1")


@pytest.mark.skipif(
    not Path(sys.executable).with_name("mooncake_master").exists(),
    reason="Mooncake is not installed",
)
async def test_the_real_process_without_a_master(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries for longer than the doctor waits."""
    monkeypatch.setattr(store_object, "STEP_S", 5.0)
    monkeypatch.setattr(store_object, "KILL_S", 0.1)
    page = ProbeObject(SPEC)
    assert (await page.step()).error
    assert (await page.remove()).error == ""
