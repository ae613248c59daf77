"""The router as the stack starts it: READY, one clear line when it cannot start, an orderly end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

COMMAND = [sys.executable, "-m", "agent_runtime.serve", "--config"]
ENGINE = {"name": "e", "role": "plain", "url": "http://127.0.0.1:9"}


def configured(folder: Path, **settings: Any) -> str:
    file = folder / "router.yaml"
    file.write_text(yaml.safe_dump({"engines": [ENGINE], **settings}))
    return str(file)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(config: str) -> Iterator[subprocess.Popen[str]]:
    words = [*COMMAND, config]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_ready_means_it_answers_and_a_signal_ends_it_in_order(
    tmp_path: Path, stop: signal.Signals
) -> None:
    port = free_port()
    with running(configured(tmp_path, port=port)) as process:
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
        process.send_signal(stop)
        assert process.wait(20) == 0


def test_sessions_outlive_a_kill(tmp_path: Path) -> None:
    port = free_port()
    config = configured(tmp_path, port=port, database=str(tmp_path / "db"))
    url = f"http://127.0.0.1:{port}/v1/sessions"
    with running(config) as process:
        assert httpx.post(url, json={"session_id": "a", "metadata": {"k": 1}}).status_code == 201
        process.kill()
    with running(config):
        assert httpx.get(f"{url}/a").json()["metadata"] == {"k": 1}


def failed(config: str) -> str:
    done = subprocess.run([*COMMAND, config], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "READY" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_second_router_on_the_same_database_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, database=str(tmp_path / "db"), port=0)
    with running(config):
        assert "another router uses it" in failed(config)


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    assert "cannot open the session database" in failed(
        configured(tmp_path, database=str(tmp_path / "none" / "db"))
    )
    assert "did you mean 'policy'" in failed(configured(tmp_path, polizy="x"))
    assert "expected one of round_robin, " in failed(configured(tmp_path, policy="best"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in failed(configured(tmp_path, port=port))
