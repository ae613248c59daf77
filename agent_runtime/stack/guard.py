"""A tiny process around each component that makes sure nothing of it is left behind.

    stack ──stdin pipe──> guard (own session, subreaper) ──> component ──> its own children
          <─status pipe──

The guard is run as a plain file with `python -S -E` (no site-packages: start in ~20 ms), so it
uses the standard library only. It is a *subreaper*: whatever the component starts, even in a
new session or orphaned, stays below it in the process tree. It ends the whole tree when
  * the stack asks (a byte on stdin, or SIGTERM): SIGTERM to the component's process group, then
    SIGKILL to everything after the grace; byte `K` skips the grace,
  * the stack is gone (end of file on stdin, also after kill -9),
  * the component has ended by itself.
If the guard itself is killed, the kernel kills the component (PR_SET_PDEATHSIG).

The component gets a folder of its own as TMPDIR, which goes with it: SGLang leaves a dozen sockets
and empty files per engine in the temporary folder (`tempfile.NamedTemporaryFile(delete=False)`).

Lines on the status pipe: `pid N`, then `exit CODE` (negative: signal) as soon as the component
is gone, or `error TEXT` when it could not be started; end of file when the tree is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TREE_GRACE_S = 2.0
"""After the component itself has ended, its children get this long to end by themselves."""
PARENT_CHECK_S = 1.0


def main(argv: list[str]) -> int:
    """argv: GRACE_S STATUS_FD COMMAND...; returns the exit code of the guard."""
    grace_s, status_fd, command = float(argv[0]), int(argv[1]), argv[2:]
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    os.set_inheritable(status_fd, False)
    try:
        temporary = _temporary_folder()
    except OSError as error:
        _tell(status_fd, f"error no temporary folder: {error}")
        return 127
    try:
        child = _start(command, libc, status_fd)
        if child is None:
            return 127
        _tell(status_fd, f"pid {child}")
        asked = _watch(child, wakeup, parent, status_fd)
        if asked is not None:
            _end_group(child, 0.0 if asked == "now" else grace_s, wakeup, status_fd)
        _end_tree(0.0 if asked == "now" else TREE_GRACE_S)
    finally:
        _remove(temporary)
    return 0


def _temporary_folder() -> str:
    """Made and set as TMPDIR of what is started from here. Short: sockets lie in it."""
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/dualpath-{os.getpid()}-{time.time_ns():x}"
    os.mkdir(path, 0o700)
    os.environ["TMPDIR"] = path
    return path


def _remove(folder: str) -> None:
    import shutil  # here, when nobody waits: it takes as long to import as all else together

    shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str], libc: ctypes.CDLL, status_fd: int) -> int | None:
    """Fork and exec; the pid, or None when the program cannot be executed."""
    guard = os.getpid()
    failed_r, failed_w = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard:
                os._exit(1)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)
        except OSError as error:
            os.write(failed_w, (error.strerror or "failed").encode())
        finally:
            os._exit(127)
    os.close(failed_w)
    reason = os.read(failed_r, 1000).decode()
    os.close(failed_r)
    if reason:
        os.waitpid(child, 0)
        _tell(status_fd, f"error cannot run {command[0]}: {reason}")
        return None
    return child


def _watch(child: int, wakeup: int, parent: int, status_fd: int) -> str | None:
    """Wait until the component has ended (None) or has to end ("now" or "grace")."""
    while True:
        ready, _, _ = select.select([0, wakeup], [], [], PARENT_CHECK_S)
        if _reap(child, status_fd):
            return None
        if 0 in ready:
            return "now" if os.read(0, 1) == b"K" else "grace"
        if os.getppid() != parent:
            return "grace"
        numbers = os.read(wakeup, 64) if wakeup in ready else b""
        if set(numbers) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            return "grace"


def _end_group(child: int, grace_s: float, wakeup: int, status_fd: int) -> None:
    """SIGTERM to the component's group, wait up to the grace, then SIGKILL."""
    deadline = time.monotonic() + grace_s
    _signal_group(child, signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    inputs, gone = [0, wakeup], False
    while not gone and time.monotonic() < deadline:
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(inputs, [], [], min(0.1, left))
        if wakeup in ready:
            os.read(wakeup, 64)
        if 0 in ready:
            byte = os.read(0, 1)
            if byte == b"K":
                break
            if byte == b"":
                inputs = [wakeup]  # the stack is gone; the grace stays
        gone = _reap(child, status_fd)
    if not gone:
        _signal_group(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        _tell(status_fd, f"exit {os.waitstatus_to_exitcode(status)}")


def _reap(child: int, status_fd: int) -> bool:
    """Collect every ended process below; True (and reported) when the component is one."""
    ended = False
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == child:
            ended = True
            _tell(status_fd, f"exit {os.waitstatus_to_exitcode(status)}")


def _end_tree(grace_s: float) -> None:
    """End whatever is left below the guard; returns when nothing is."""
    kill_at = time.monotonic() + grace_s
    told: set[int] = set()
    while True:
        _reap(-1, -1)
        left = _descendants(os.getpid())
        if not left:
            return
        number = signal.SIGKILL if time.monotonic() >= kill_at else signal.SIGTERM
        for pid in left:
            if number == signal.SIGKILL or pid not in told:
                told.add(pid)
                _signal(pid, number)
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """Live processes below `root`, found through /proc. Zombies are left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command in parentheses may contain anything; the fields follow the last ")".
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            children.setdefault(int(ppid), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _wake_on_signals() -> int:
    """A descriptor on which the number of each received signal can be read."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _tell(fd: int, line: str) -> None:
    # Without a reader the stack is gone; ending the tree is all that is left to do.
    with contextlib.suppress(OSError):
        os.write(fd, (line + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
