"""The supervisor on stub processes: start, ends of children, policies, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.config import (
    EngineGroup,
    ExitPolicies,
    RouterConfig,
    StackConfig,
    StoreConfig,
)
from agent_runtime.stack import keeper
from agent_runtime.stack.commands import Programs
from agent_runtime.stack.ports import is_free
from agent_runtime.stack.stack import RunningStack, Stack
from agent_runtime.stack.status import Event
from dualpath_sglang.contract.errors import StartupError

Make = Callable[..., StackConfig]
Left = Callable[[], list[int]]


def full(make: Make, **changes: object) -> StackConfig:
    """All five kinds of component."""
    settings: dict[str, object] = {
        "engines": (EngineGroup(role="prefill"), EngineGroup(role="decode")),
        "store": StoreConfig(),
        "start_router": True,
        "router": RouterConfig(port=0),
        "start_renderer": True,
    }
    return make(**(settings | changes))


def engine(mode: str, **env: str) -> tuple[EngineGroup, ...]:
    return (EngineGroup(role="plain", env={"STUB_MODE": mode, **env}),)


def events_of(stack: RunningStack, name: str) -> list[str]:
    return [e.state for e in stack.events if e.component == name]


def test_all_kinds_start_and_stop(make_config: Make, stubs: Programs, left: Left) -> None:
    config = full(make_config)
    with Stack(config, programs=stubs).start() as stack:
        names = [c.name for c in stack.layout.components]
        assert names == ["master", "store", "prefill-0", "decode-0", "router", "renderer"]
        assert all(stack.component(n).state == "ready" for n in names)
        status = json.loads((stack.run_dir / "status.json").read_text())
        assert status["state"] == "ready"
        assert status["router_url"] == stack.router_url
        by_name = {c["name"]: c for c in status["components"]}
        assert by_name["prefill-0"]["ports"].keys() == {"http", "nccl", "bootstrap"}
        os.kill(by_name["decode-0"]["pid"], 0)
        settings = stack.run_dir / "router.yaml"
        assert settings.stat().st_mode & 0o777 == 0o600  # it holds the router's keys
        used = [p for c in status["components"] for p in c["ports"].values()]
        assert len(used) == len(set(used))
        ready = {e.component: e.at_s for e in stack.events if e.state == "ready"}
        began = {e.component: e.at_s for e in stack.events if e.state == "starting"}
        assert ready["master"] <= began["store"]
        assert ready["store"] <= min(began["prefill-0"], began["decode-0"])
    assert left() == []
    assert all(is_free(port) for port in used)
    status = json.loads((stack.run_dir / "status.json").read_text())
    assert status["state"] == "stopped"
    assert {c["state"] for c in status["components"]} == {"stopped"}


def test_stop_takes_grandchildren_in_other_sessions_and_temporary_files(
    make_config: Make, stubs: Programs, left: Left, temporary: Path
) -> None:
    with Stack(make_config(engines=engine("family")), programs=stubs).start():
        assert len(left()) == 4  # guard, stub, two grandchildren
        assert list(temporary.glob("*/forgotten"))
    assert left() == []
    assert not list(temporary.iterdir())


def test_without_a_temporary_folder(
    make_config: Make, stubs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/does/not/exist")
    with pytest.raises(StartupError, match="no temporary folder"):
        Stack(make_config(engines=engine("ready")), programs=stubs).start()


def test_a_component_that_ignores_sigterm_is_killed(
    make_config: Make, stubs: Programs, left: Left
) -> None:
    stack = Stack(make_config(engines=engine("deaf")), programs=stubs).start()
    stack.stop()
    assert left() == []
    assert stack.component("plain-0").exit_code == -signal.SIGKILL


def test_a_defect_in_a_watcher_ends_the_start(
    make_config: Make, stubs: Programs, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bool:
        raise ValueError("a defect")

    monkeypatch.setattr(keeper, "is_ready", broken)
    began = time.monotonic()
    with pytest.raises(StartupError, match=r"plain-0 can no longer be watched.*a defect"):
        Stack(make_config(), programs=stubs).start()
    assert time.monotonic() - began < 15
    assert left() == []


def test_a_listener_that_fails_stops_nothing(
    make_config: Make, stubs: Programs, left: Left
) -> None:
    def broken(event: Event) -> None:
        raise ValueError("a defect")

    with Stack(make_config(), programs=stubs, on_event=broken).start() as running:
        assert running.started_in_s is not None
    assert left() == []


def test_a_status_that_cannot_be_written_stops_nothing(
    make_config: Make, stubs: Programs, left: Left, tmp_path: Path
) -> None:
    (tmp_path / "run/status.tmp").mkdir(parents=True)
    with Stack(make_config(), programs=stubs).start() as running:
        assert running.component("plain-0").state == "ready"
    assert left() == []


@pytest.mark.parametrize("mode", ["family", "deaf"])
def test_nothing_is_left_when_the_parent_is_killed(
    mode: str, stubs: Programs, left: Left, temporary: Path, tmp_path: Path, model: str
) -> None:
    script = f"""
import time
from agent_runtime.config import *
from agent_runtime.stack.commands import Programs
from agent_runtime.stack.stack import Stack
config = StackConfig(
    model=ModelConfig(path={model!r}), start_router=False, start_renderer=False,
    engines=(EngineGroup(role="plain", env={{"STUB_MODE": {mode!r}}}),),
    store=StoreConfig(enabled=False, segment_bytes=0),
    run_dir={str(tmp_path / "run")!r}, stop_grace_s=0.3)
Stack(config, programs=Programs(engine={stubs.engine!r})).start()
print("up", flush=True)
time.sleep(600)
"""
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    with parent.stdout as out:
        assert out.readline() == "up\n"
    assert len(left()) >= 3
    parent.kill()
    parent.wait()
    wait_until(lambda: left() == [] and not list(temporary.glob("dualpath-[0-9]*")), 5.0)


def test_nothing_is_left_when_a_guard_is_killed(
    make_config: Make, stubs: Programs, left: Left, temporary: Path
) -> None:
    stack = Stack(make_config(engines=engine("family")), programs=stubs).start()
    child = stack._keepers["plain-0"].child
    assert child is not None
    os.kill(child.guard_pid, signal.SIGKILL)
    with pytest.raises(StartupError, match="guard process was killed"):
        stack.wait(timeout=5.0)
    wait_until(lambda: left() == [] and not list(temporary.iterdir()), 5.0)


KINDS = ["master", "store", "prefill-0", "decode-0", "renderer", "router"]


@pytest.mark.parametrize("name", KINDS)
def test_policy_stop(name: str, make_config: Make, stubs: Programs, left: Left) -> None:
    stack = Stack(full(make_config), programs=stubs).start()
    ports = [p for c in stack.layout.components for p in c.ports.values()]
    killed_at = time.monotonic()
    stack.kill(name)
    with pytest.raises(StartupError) as caught:
        stack.wait(timeout=10.0)
    assert time.monotonic() - killed_at < 5.0
    assert f"{name} was killed by SIGKILL" in caught.value.message
    assert "hello from the stub" in caught.value.message
    report = next(e for e in stack.events if e.component == name and e.state == "failed")
    assert "hello from the stub" in report.lines
    assert left() == []
    assert all(is_free(port) for port in ports)


@pytest.mark.parametrize("name", KINDS)
def test_policy_keep(name: str, make_config: Make, stubs: Programs, left: Left) -> None:
    keep = ExitPolicies("keep", "keep", "keep", "keep", "keep")
    with Stack(full(make_config, on_child_exit=keep), programs=stubs).start() as stack:
        before = {n: stack.component(n).pid for n in KINDS}
        stack.kill(name)
        stack.wait_for(name, "exited", 5.0)
        assert stack.component(name).exit_code == -signal.SIGKILL
        for other in KINDS:
            if other != name:
                assert stack.component(other).state == "ready"
                assert stack.component(other).pid == before[other]
        assert not stack.wait(timeout=0.05)
    assert left() == []


@pytest.mark.parametrize("name", KINDS)
def test_policy_restart(name: str, make_config: Make, stubs: Programs, left: Left) -> None:
    restart = ExitPolicies("restart", "restart", "restart", "restart", "restart")
    with Stack(full(make_config, on_child_exit=restart), programs=stubs).start() as stack:
        before = stack.component(name)
        stack.kill(name)
        stack.wait_for(name, "ready", 10.0, restarts=1)
        after = stack.component(name)
        assert after.pid not in (None, before.pid)
        assert after.component.ports == before.component.ports
        report = next(e for e in stack.events if e.state == "restarting")
        assert report.component == name
        assert "hello from the stub" in report.lines
        assert "restart 1 of 3" in report.detail
    assert left() == []


def test_restarts_are_bounded(
    make_config: Make, stubs: Programs, left: Left, tmp_path: Path
) -> None:
    flag = tmp_path / "broken"
    config = make_config(
        engines=engine("flaky", STUB_FILE=str(flag)),
        on_child_exit=ExitPolicies(engines="restart"),
        max_restarts=2,
    )
    stack = Stack(config, programs=stubs).start()
    flag.touch()
    stack.kill("plain-0")
    with pytest.raises(StartupError, match="gave up after 2 restarts"):
        stack.wait(timeout=20.0)
    assert stack.component("plain-0").restarts == 2
    assert events_of(stack, "plain-0").count("restarting") == 2
    assert left() == []


def test_a_group_has_its_own_policy(make_config: Make, stubs: Programs) -> None:
    groups = (EngineGroup(role="plain", on_child_exit="keep"),)
    with Stack(make_config(engines=groups), programs=stubs).start() as stack:
        stack.kill("plain-0")
        stack.wait_for("plain-0", "exited", 5.0)


def test_a_crash_at_start_stops_all_at_once(make_config: Make, stubs: Programs, left: Left) -> None:
    lines = "\n".join(f"line {i}" for i in range(30)) + "\nRuntimeError: Address already in use"
    groups = (
        EngineGroup(role="plain", env={"STUB_MODE": "crash", "STUB_LINES": lines}, name="bad"),
        EngineGroup(role="plain", env={"STUB_MODE": "silent"}, name="slow"),
    )
    events: list[Event] = []
    config = make_config(engines=groups, on_child_exit=ExitPolicies(engines="restart"))
    with pytest.raises(StartupError) as caught:
        Stack(config, programs=stubs, on_event=events.append).start()
    message = caught.value.message
    assert message.startswith("bad exited with code 3\nlikely cause: a port is in use")
    assert "line 29" in message
    assert "line 10" not in message  # 20 lines, no more
    assert "bad.log" in message
    assert left() == []
    assert events[-1].state == "failed"


def test_a_component_that_is_never_ready(make_config: Make, stubs: Programs, left: Left) -> None:
    config = make_config(engines=engine("silent"), start_timeout_s=0.4)
    with pytest.raises(StartupError, match=r"plain-0 was not ready after 0\.4 s"):
        Stack(config, programs=stubs).start()
    assert left() == []


def test_a_program_that_does_not_exist(make_config: Make, stubs: Programs) -> None:
    programs = Programs(engine=("/nowhere/engine",))
    with pytest.raises(StartupError, match="cannot run /nowhere/engine: No such file"):
        Stack(make_config(), programs=programs).start()


def test_an_engine_started_elsewhere_is_not_ours(
    make_config: Make, stubs: Programs, tmp_path: Path
) -> None:
    config = make_config()
    with Stack(config, programs=stubs).start() as host:
        groups = (EngineGroup(role="plain", url=host.url("plain-0")),)
        guest_config = make_config(engines=groups, run_dir=str(tmp_path / "guest"))
        with Stack(guest_config, programs=stubs).start() as guest:
            assert guest.component("plain-0").pid is None
            assert guest.component("plain-0").state == "ready"
        assert host.component("plain-0").state == "ready"


def test_an_engine_elsewhere_that_does_not_answer(make_config: Make, stubs: Programs) -> None:
    groups = (EngineGroup(role="plain", url="http://127.0.0.1:1"),)
    config = make_config(engines=groups, start_timeout_s=0.3)
    with pytest.raises(StartupError, match=r"plain-0 at http://127.0.0.1:1 was not ready"):
        Stack(config, programs=stubs).start()


def test_one_stack_per_run_folder(make_config: Make, stubs: Programs) -> None:
    config = make_config()
    first = Stack(config, programs=stubs).start()
    with pytest.raises(StartupError, match="another stack runs in"):
        Stack(config, programs=stubs).start()
    first.stop()
    Stack(config, programs=stubs).start().stop()


def test_a_stop_request_while_starting(make_config: Make, stubs: Programs, left: Left) -> None:
    stack: Stack

    def stop_early(event: Event) -> None:
        if event.component == "plain-0" and event.state == "starting":
            stack.request_stop()

    stack = Stack(make_config(engines=engine("silent")), programs=stubs, on_event=stop_early)
    with pytest.raises(StartupError, match="stopped while starting"):
        stack.start()
    assert left() == []


def test_the_socket_of_a_deep_run_folder_is_short(
    make_config: Make, stubs: Programs, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 90)
    with Stack(full(make_config, run_dir=str(deep)), programs=stubs).start() as stack:
        renderer = next(c for c in stack.layout.components if c.name == "renderer")
        socket = Path(renderer.command[-1])
        assert len(str(socket)) < 108
        assert socket.parent.is_dir()
    assert not socket.parent.exists()


def wait_until(done: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "still not after the timeout"
        time.sleep(0.05)
