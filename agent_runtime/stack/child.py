"""One component process, run below its guard."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

GUARD = Path(__file__).with_name("guard.py")
TAG = "DUALPATH_CHILD_TAG"
"""Environment variable that all processes of one component inherit."""
GUARD_LOST = "was lost: its guard process was killed"


class Child:
    """A started component.

    `pid` is the component's own process id (None until known), `exit_code` its end (negative:
    signal). `exited` is set when the component is gone, `cleared` when its whole tree is.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        grace_s: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.error: str | None = None
        self.exited = threading.Event()
        self.cleared = threading.Event()
        self.known = threading.Event()
        self._changed = changed
        self._tag = uuid.uuid4().hex
        status_r, status_w = os.pipe()
        with open(log, "ab") as output:
            self.log_start = output.seek(0, os.SEEK_END)
            guard = [sys.executable, "-S", "-E", str(GUARD), str(grace_s), str(status_w)]
            self._guard = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env, TAG: self._tag},
                pass_fds=(status_w,),
                start_new_session=True,
            )
        assert self._guard.stdin is not None
        self._stdin = self._guard.stdin
        os.close(status_w)
        self._reader = threading.Thread(target=self._read, args=(status_r,), daemon=True)
        self._reader.start()

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    def ask_to_stop(self, *, now: bool = False) -> None:
        """SIGTERM, then SIGKILL after the grace; `now` goes straight to SIGKILL."""
        # Broken pipe or closed file: the guard has already ended.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.write(b"K" if now else b"T")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the component itself, as a fault would."""
        self.known.wait(5.0)
        if self.pid is not None and not self.exited.is_set():
            os.kill(self.pid, number)

    def wait_cleared(self, timeout: float | None = None) -> bool:
        return self.cleared.wait(timeout)

    def _read(self, status_r: int) -> None:
        try:
            with os.fdopen(status_r, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    self._note(line.rstrip("\n"))
        finally:
            self._guard.wait()
            self._stdin.close()
            if not self.exited.is_set():
                self._guard_lost()
            self.known.set()
            self.cleared.set()
            self._changed()

    def _note(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "pid":
            self.pid = int(rest)
            self.known.set()
        elif word == "exit":
            self.exit_code = int(rest)
            self.exited.set()
        elif word == "error":
            self.error, self.exit_code = rest, 127
            self.exited.set()
        self._changed()

    def _guard_lost(self) -> None:
        """The guard went without a word. The kernel kills the component with it, not the rest."""
        _kill_tagged(self._tag)
        for folder in Path(os.environ.get("TMPDIR") or "/tmp").glob(f"dualpath-{self.guard_pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.error, self.exit_code = GUARD_LOST, -signal.SIGKILL
        self.exited.set()


def _kill_tagged(tag: str) -> None:
    """SIGKILL every process that inherited the tag, until there is none."""
    for _ in range(100):
        alive = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TAG) == tag and process.status() != psutil.STATUS_ZOMBIE:
                    alive += 1
                    process.kill()
        if not alive:
            return
        time.sleep(0.02)
