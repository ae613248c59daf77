"""The life of one component: wait for what it needs, start, watch, restart or give up."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent_runtime.stack.causes import CAUSE_LINES, describe_exit, likely_cause
from agent_runtime.stack.child import Child
from agent_runtime.stack.component import Component
from agent_runtime.stack.readiness import is_ready, tail
from agent_runtime.stack.status import Board, Event, Failure, State

log = logging.getLogger("dualpath.stack")
LOOK_EVERY_S = 0.2
RESTART_PAUSE_S = 0.5
SHOWN_LINES = 20


@dataclass(frozen=True)
class Limits:
    """How often one component may be restarted: `max_restarts` within `window_s`."""

    max_restarts: int
    window_s: float


class Keeper(threading.Thread):
    """Runs one component. `fail` is called when the whole stack has to stop because of it."""

    def __init__(
        self,
        component: Component,
        board: Board,
        log: Path,
        limits: Limits,
        fail: Callable[[Failure], None],
    ) -> None:
        super().__init__(name=f"keeper-{component.name}", daemon=True)
        self.component = component
        self.child: Child | None = None
        self._board = board
        self._log = log
        self._limits = limits
        self._fail = fail
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._now = False
        self._restarts: deque[float] = deque()

    # --- called from outside --------------------------------------------------------------

    def request_stop(self, *, now: bool = False) -> None:
        self._now = self._now or now
        self._stopping.set()
        if now and self.child is not None:
            self.child.ask_to_stop(now=True)
        self._wake.set()

    # --- the thread -----------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._live()
        except Exception as error:
            # A defect of this thread: unnoticed, the start would wait for it for ever.
            log.exception("%s is no longer watched", self.component.name)
            what = f"can no longer be watched, which is a defect here: {error!r}"
            self._fail(Failure(self.component.name, what, (), "", None))
            self._set("failed", error=what)
            if self.child is not None:
                self.child.ask_to_stop(now=True)
                self.child.wait_cleared()

    def _live(self) -> None:
        if not self._wait_for_needs():
            self._set("stopped")
        elif self.component.external:
            self._watch_start(None)
        else:
            while self._run_once():
                self._wake.wait(RESTART_PAUSE_S)

    def _wait_for_needs(self) -> bool:
        board, needs = self._board, self.component.after

        def decided() -> bool:
            return self._stopping.is_set() or all(board.states[n].state == "ready" for n in needs)

        with board.changed:
            while not board.changed.wait_for(decided, timeout=LOOK_EVERY_S):
                pass
        return not self._stopping.is_set()

    def _run_once(self) -> bool:
        """One run of the process, from start to end. True to run it again."""
        if self._stopping.is_set():
            self._set("stopped", pid=None)
            return False
        c = self.component
        try:
            self.child = child = Child(
                c.command, c.env, self._log, grace_s=c.grace_s, changed=self._wake.set
            )
        except OSError as error:
            return self._give_up(f"could not be started: {error}", ())
        child.known.wait()
        if self._watch_start(child):
            self._watch(child)
        if self._stopping.is_set():
            return self._end(child)
        return self._ended(child)

    def _watch_start(self, child: Child | None) -> bool:
        """Wait until the component is ready; False when it ended or has to end before."""
        began, c = self._board.seconds(), self.component
        self._set("starting", pid=child.pid if child else None, exit_code=None, error="")
        log, log_start = (self._log, child.log_start) if child else (None, 0)
        while not self._stopping.is_set() and not (child and child.exited.is_set()):
            took = self._board.seconds() - began
            if is_ready(c.ready, log, log_start):
                self._set("ready", started_in_s=round(took, 3))
                return True
            if took > c.start_timeout_s:
                self._too_late(child)
                return False
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
        if child is None:
            self._set("stopped")
        return False

    def _watch(self, child: Child) -> None:
        while not self._stopping.is_set() and not child.exited.is_set():
            self._wake.wait()
            self._wake.clear()

    def _too_late(self, child: Child | None) -> None:
        what = f"was not ready after {self.component.start_timeout_s:g} s (start_timeout_s)"
        if child is None:
            self._give_up(f"at {self.component.url} {what}", ())
            return
        child.error = what
        child.ask_to_stop(now=True)
        child.exited.wait()

    def _end(self, child: Child) -> bool:
        self._set("stopping")
        child.ask_to_stop(now=self._now)
        if not child.wait_cleared(self.component.grace_s + 5.0):
            child.ask_to_stop(now=True)
            child.wait_cleared()
        self._set("stopped", pid=None, exit_code=child.exit_code)
        return False

    def _ended(self, child: Child) -> bool:
        """The component ended by itself: report it at once, then do what its policy says."""
        lines = tail(self._log, child.log_start, CAUSE_LINES)
        what = child.error or describe_exit(child.exit_code)
        starting = self._board.state == "starting"
        policy = "stop" if starting else self.component.on_exit
        if policy == "restart" and self._may_restart():
            count = f"restart {len(self._restarts)} of {self._limits.max_restarts}"
            self._report("restarting", f"{what}; {count}", lines, child)
            child.wait_cleared()
            return True
        if policy == "keep":
            self._report("exited", f"{what}; the others go on (on_child_exit: keep)", lines, child)
            child.wait_cleared()
            return False
        if policy == "restart":
            window = f"{self._limits.window_s:g} s"
            what += f"; gave up after {len(self._restarts)} restarts within {window} (max_restarts)"
        return self._give_up(what, lines, child)

    def _may_restart(self) -> bool:
        now = self._board.seconds()
        while self._restarts and now - self._restarts[0] > self._limits.window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._limits.max_restarts:
            return False
        self._restarts.append(now)
        self._board.states[self.component.name].restarts += 1
        return True

    def _give_up(self, what: str, lines: tuple[str, ...], child: Child | None = None) -> bool:
        cause = self._report("failed", what, lines, child)
        lines = lines[-SHOWN_LINES:]
        log = None if self.component.external else self._log
        self._fail(Failure(self.component.name, what, lines, cause, log))
        if child is not None:
            child.wait_cleared()
        return False

    def _report(self, state: State, what: str, lines: tuple[str, ...], child: Child | None) -> str:
        code = child.exit_code if child else None
        cause = likely_cause(lines, code)
        lines = lines[-SHOWN_LINES:]
        name = self.component.name
        event = Event(self._board.seconds(), name, state, what, lines, cause)
        changes = {"state": state, "pid": None, "exit_code": code, "error": what}
        self._board.update(name, changes, event)
        return cause

    def _set(self, state: State, **changes: object) -> None:
        self._board.update(self.component.name, {"state": state, **changes})
