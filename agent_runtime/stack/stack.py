"""A stack as a library: `with Stack(config).start() as stack: ... stack.router_url ...`."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from agent_runtime.config import EngineEndpoint, StackConfig
from agent_runtime.stack.commands import Programs
from agent_runtime.stack.component import Layout
from agent_runtime.stack.keeper import Keeper, Limits
from agent_runtime.stack.layout import build, port_requests
from agent_runtime.stack.ports import PortLease, lease
from agent_runtime.stack.preflight import find_program, preflight
from agent_runtime.stack.status import Board, ComponentState, Event, Failure, State
from dualpath_sglang.contract.errors import StartupError

Listener = Callable[[Event], None]
LONGEST_SOCKET_PATH = 100


class Stack:
    """A stack that is not running yet.

    `on_event` is called for every change, from the thread that saw it: it must not block.
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        on_event: Listener | None = None,
        programs: Programs | None = None,
    ) -> None:
        self.config = config
        self._on_event = on_event
        self._programs = programs
        self._running: RunningStack | None = None
        self._stop_requested = False

    def start(self) -> RunningStack:
        """Start everything and wait until it is ready.

        Raises ConfigError or StartupError; whatever was started is gone then.
        """
        config = self.config
        programs = self._programs or Programs()
        preflight(config, programs.master)
        if config.store.enabled and not config.store.master_url:
            master = (find_program(programs.master[0]), *programs.master[1:])
            programs = dataclasses.replace(programs, master=master)
        ports = lease(port_requests(config))
        try:
            self._running = running = RunningStack(config, ports, programs, self._on_event)
        except BaseException:
            ports.release()
            raise
        try:
            if self._stop_requested:
                running.request_stop()
            running.launch()
        except BaseException:
            running.stop()
            raise
        return running

    @property
    def failure(self) -> Failure | None:
        """The component that stopped the stack, if one did."""
        return self._running.failure if self._running else None

    def request_stop(self, *, now: bool = False) -> None:
        """Ask for the end, also while starting; returns at once. `now` skips the grace."""
        self._stop_requested = True
        if self._running is not None:
            self._running.request_stop(now=now)


class RunningStack:
    """A started stack. Use `Stack(config).start()` to get one."""

    def __init__(
        self,
        config: StackConfig,
        ports: PortLease,
        programs: Programs,
        on_event: Listener | None,
    ) -> None:
        self._ports = ports
        self.run_dir = Path(config.run_dir).resolve()
        self.log_dir = Path(config.log_dir).resolve() if config.log_dir else self.run_dir / "logs"
        for folder in (self.run_dir, self.log_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_run_dir(self.run_dir)
        self._own_sockets = len(str(self.run_dir)) + 15 > LONGEST_SOCKET_PATH
        sockets = Path(tempfile.mkdtemp(prefix="dualpath-")) if self._own_sockets else self.run_dir
        self._sockets = sockets
        no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        self.layout: Layout = build(
            config, ports.ports, self.run_dir, sockets, programs, no_proxy=no_proxy
        )
        self.failure: Failure | None = None
        self._board = Board(
            self.run_dir / "status.json", time.monotonic, self.layout.router_url, on_event
        )
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._keepers_started = threading.Event()
        limits = Limits(config.max_restarts, config.restart_window_s)
        self._keepers: dict[str, Keeper] = {}
        for component in self.layout.components:
            log = self.log_dir / f"{component.name}.log"
            if not component.external:
                log.write_bytes(b"")
            state = ComponentState(component, None if component.external else log)
            self._board.states[component.name] = state
            keeper = Keeper(component, self._board, log, limits, self._fail)
            self._keepers[component.name] = keeper

    # --- what it offers -------------------------------------------------------------------

    @property
    def router_url(self) -> str:
        return self.layout.router_url

    @property
    def engines(self) -> tuple[EngineEndpoint, ...]:
        """The engines that the router serves, as it sees them."""
        return self.layout.engines

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(self._board.events)

    @property
    def started_in_s(self) -> float | None:
        return self._board.started_in_s

    def url(self, name: str) -> str:
        """Base URL of one component (engines, router; host:port of the master)."""
        return self.component(name).component.url

    def component(self, name: str) -> ComponentState:
        """A copy of the current state of one component. Raises KeyError."""
        with self._board.changed:
            return dataclasses.replace(self._board.states[name])

    def kill(self, name: str) -> None:
        """kill -9 the component's own process, as a fault would."""
        child = self._keepers[name].child
        if child is None:
            raise StartupError(f"{name} is not running")
        child.kill()

    def wait_for(self, name: str, state: State, timeout: float, *, restarts: int = 0) -> None:
        """Block until a component is in a state (after so many restarts). Raises TimeoutError."""

        def reached() -> bool:
            current = self._board.states[name]
            return current.state == state and current.restarts >= restarts

        with self._board.changed:
            if not self._board.changed.wait_for(reached, timeout):
                now = self._board.states[name].state
                raise TimeoutError(f"{name} is {now}, not {state}, after {timeout:g} s")

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the stack has stopped; False on timeout.

        Raises StartupError when a component's end has stopped it.
        """
        if not self._stopped.wait(timeout):
            return False
        if self.failure is not None:
            raise StartupError(self.failure.text())
        return True

    def stop(self) -> None:
        """Stop everything and wait until no process is left. May be called twice."""
        self.request_stop()
        self._stopped.wait()

    def request_stop(self, *, now: bool = False) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
        for keeper in self._keepers.values():
            keeper.request_stop(now=now)

    def __enter__(self) -> RunningStack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- how it works ---------------------------------------------------------------------

    def launch(self) -> None:
        """Start all keepers and wait until every component is ready. Raises StartupError."""
        board = self._board
        threading.Thread(target=self._close, name="stack-closer", daemon=True).start()
        try:
            for path, text in self.layout.files.items():
                _write_for_owner(path, text)
            board.update("", {"state": "starting"})
            for keeper in self._keepers.values():
                keeper.start()
        finally:
            self._keepers_started.set()

        def decided() -> bool:
            everyone = all(s.state == "ready" for s in board.states.values())
            return everyone or self._stopping.is_set() or self.failure is not None

        with board.changed:
            # The timeout only lets a stop request through that came between two changes.
            while not board.changed.wait_for(decided, timeout=0.2):
                pass
            if self.failure is None and not self._stopping.is_set():
                took = round(board.seconds(), 3)
                board.update("", {"state": "ready", "started_in_s": took})
                return
        self._stopped.wait()
        if self.failure is not None:
            raise StartupError(self.failure.text())
        raise StartupError("stopped while starting")

    def _fail(self, failure: Failure) -> None:
        with self._board.changed:
            if self.failure is not None or self._stopping.is_set():
                return
            self.failure = failure
        self._board.update("", {"error": f"{failure.component} {failure.what}"})
        self.request_stop()

    def _close(self) -> None:
        """Wait for the stop request and for every keeper, then give everything back."""
        self._stopping.wait()
        # One that ends at once must not make the closer overlook another that is about to start.
        self._keepers_started.wait()
        self._board.update("", {"state": "stopping"})
        for keeper in self._keepers.values():
            if keeper.ident is not None:
                keeper.join()
        self._ports.release()
        if self._own_sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._board.update("", {"state": "failed" if self.failure else "stopped"})
        self._lock.close()
        self._stopped.set()


def _write_for_owner(path: Path, text: str) -> None:
    """Readable by nobody else from the first byte on: the router's settings hold its keys."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _lock_run_dir(run_dir: Path) -> IO[str]:
    file = open(run_dir / "lock", "w", encoding="ascii")  # noqa: SIM115 -- held while running
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StartupError(
            f"another stack runs in {run_dir}; stop it, or choose another run_dir (--run-dir)"
        ) from error
    return file
