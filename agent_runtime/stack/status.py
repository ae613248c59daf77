"""What a stack is doing: events as they happen, and `status.json` for other programs."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent_runtime.stack.component import Component

SCHEMA = "dualpath-stack/1"
log = logging.getLogger("dualpath.stack")

State = Literal[
    "waiting", "starting", "ready", "exited", "restarting", "failed", "stopping", "stopped"
]


@dataclass(frozen=True)
class Event:
    """One change. `component` is "" for the stack as a whole; `at_s` counts from its start."""

    at_s: float
    component: str
    state: State
    detail: str = ""
    lines: tuple[str, ...] = ()
    cause: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a component is gone: what happened, its last log lines, and the likely cause."""

    component: str
    what: str
    lines: tuple[str, ...]
    cause: str
    log: Path | None

    def text(self) -> str:
        parts = [f"{self.component} {self.what}"]
        if self.cause:
            parts.append(f"likely cause: {self.cause}")
        if self.lines:
            parts.append(f"last lines of {self.log}:")
            parts += [f"    {line}" for line in self.lines]
        elif self.log is not None:
            parts.append(f"it wrote nothing to {self.log}")
        return "\n".join(parts)


@dataclass
class ComponentState:
    """The changing side of a component; written by its keeper only."""

    component: Component
    log: Path | None
    state: State = "waiting"
    pid: int | None = None
    restarts: int = 0
    started_in_s: float | None = None
    exit_code: int | None = None
    error: str = ""

    def tree(self) -> dict[str, Any]:
        c = self.component
        return {
            "name": c.name,
            "kind": c.kind,
            "role": c.role,
            "state": self.state,
            "external": c.external,
            "pid": self.pid,
            "url": c.url,
            "ports": dict(c.ports),
            "restarts": self.restarts,
            "started_in_s": self.started_in_s,
            "exit_code": self.exit_code,
            "error": self.error,
            "on_child_exit": c.on_exit,
            "log": str(self.log) if self.log else None,
        }


@dataclass
class Board:
    """All states and events of a stack, and who wants to hear of them. Thread-safe."""

    file: Path
    clock: Callable[[], float]
    router_url: str = ""
    listener: Callable[[Event], None] | None = None
    states: dict[str, ComponentState] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    state: State = "starting"
    error: str = ""
    started_in_s: float | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def seconds(self) -> float:
        return self.clock() - self._began

    def update(self, name: str, changes: Mapping[str, Any], event: Event | None = None) -> None:
        """Change one component's state (or, with name "", the stack's), then tell everyone."""
        with self.changed:
            target: Any = self.states[name] if name else self
            for key, value in changes.items():
                setattr(target, key, value)
            if event is None and "state" in changes:
                event = Event(self.seconds(), name, changes["state"])
            if event is not None:
                self.events.append(event)
            try:
                self._write()
            except OSError as error:
                # The disk may be full: what runs goes on, and can still be stopped.
                log.error("%s cannot be written: %s", self.file, error)
            self.changed.notify_all()
            # Told under the lock, so that a listener sees changes in their order.
            if event is not None and self.listener is not None:
                try:
                    self.listener(event)
                except Exception:
                    # What is shown is not what is supervised.
                    log.exception("a listener failed at %r", event)

    def tree(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "state": self.state,
            "error": self.error,
            "router_url": self.router_url,
            "started_in_s": self.started_in_s,
            "components": [state.tree() for state in self.states.values()],
        }

    def _write(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.tree(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.file)
