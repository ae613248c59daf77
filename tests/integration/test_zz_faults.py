"""Real processes are killed. Last, because the final test ends the shared stack."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from session_api import Session, served_exactly
from test_turns import ids

from agent_runtime.stack.stack import RunningStack

TURN_ENDS_S = 60.0
"""A turn ends at most so long after any single fault."""


def failure_of(events: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """The `error` event of a stream; None when the turn was done or the connection broke."""
    with contextlib.suppress(httpx.HTTPError):
        for name, data in events:
            if name == "error":
                error: dict[str, Any] = data["error"]
                return error
    return None


def killed_within_a_turn(pair: RunningStack, name: str) -> tuple[Session, dict[str, Any] | None]:
    """Kill -9 one component once tokens flow; the session and the turn's error."""
    session = Session(pair.router_url)
    session.turn(token_ids=ids(10, 200)).raise_for_status()
    events = session.events(tokens=4000, token_ids=ids(11, 50))
    while next(events)[0] != "tokens":
        pass
    began = time.monotonic()
    before = pair.component(name).restarts
    pair.kill(name)
    error = failure_of(events)
    assert time.monotonic() - began < TURN_ENDS_S
    pair.wait_for(name, "ready", 180.0, restarts=before + 1)
    return session, error


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_an_engine_killed_within_a_turn(pair: RunningStack, reference: str, name: str) -> None:
    session, error = killed_within_a_turn(pair, name)
    if name == "decode-0":  # the prefill engine had done its part
        assert error is not None
        assert error["type"] == "engine_failure"
        assert "decode-0" in error["message"]
    assert len(session.history()) in (208, 208 + 50 + 4000)
    served_exactly(session, reference, ids(12, 20))


def test_a_killed_router_forgets_no_session(pair: RunningStack, reference: str) -> None:
    session, error = killed_within_a_turn(pair, "router")
    assert error is None  # there was nobody left to say it
    end = time.monotonic() + 60
    while httpx.get(f"{pair.router_url}/ready").status_code != 200 and time.monotonic() < end:
        time.sleep(0.2)
    assert len(session.history()) == 208
    served_exactly(session, reference, ids(13, 20))


def test_a_killed_renderer_comes_back(pair: RunningStack) -> None:
    before = pair.component("renderer").restarts
    pair.kill("renderer")
    session = Session(pair.router_url)
    assert session.turn(token_ids=ids(14, 20)).status_code == 200  # needs no renderer
    pair.wait_for("renderer", "ready", 60.0, restarts=before + 1)
    assert session.turn(messages=[{"role": "user", "content": "hello"}]).status_code == 200


def test_without_its_storage_node_the_stack_serves_on(pair: RunningStack, reference: str) -> None:
    session = Session(pair.router_url)
    session.turn(token_ids=ids(15, 300)).raise_for_status()
    pair.kill("store")
    pair.wait_for("store", "exited", 5.0)
    began = time.monotonic()
    served_exactly(session, reference, ids(16, 20))
    fresh = Session(pair.router_url)
    served_exactly(fresh, reference, ids(17, 20))
    assert time.monotonic() - began < 2 * TURN_ENDS_S


def test_the_end_of_the_master_ends_the_stack_and_leaves_nothing(pair: RunningStack) -> None:
    ports = [p for c in pair.layout.components for p in c.ports.values()]
    before = processes(pair)
    began = time.monotonic()
    pair.kill("master")
    pair.wait_for("master", "failed", 5.0)
    assert time.monotonic() - began < 5.0
    assert pair.failure is not None
    assert "killed" in pair.failure.text()
    pair.stop()
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert [process for process in before if is_there(process)] == []


def processes(stack: RunningStack) -> list[psutil.Process]:
    """Each component's guard and everything below it."""
    pids = [stack.component(c.name).pid for c in stack.layout.components]
    guards = [psutil.Process(psutil.Process(pid).ppid()) for pid in pids if pid is not None]
    trees = [[guard, *guard.children(recursive=True)] for guard in guards]
    assert sum(len(tree) >= 4 for tree in trees) >= len(stack.engines), "schedulers are seen"
    return [process for tree in trees for process in tree]


def is_there(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
