"""What the supervisor needs to know of one component. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent_runtime.config import EngineEndpoint, ExitPolicy

Kind = Literal["master", "store", "engine", "renderer", "router"]


@dataclass(frozen=True)
class HttpReady:
    """Ready when GET `url` answers 200."""

    url: str


@dataclass(frozen=True)
class LineReady:
    """Ready when its output has a line that starts with `word`."""

    word: str = "READY"


@dataclass(frozen=True)
class PortReady:
    """Ready when something accepts connections at host:port."""

    host: str
    port: int


Ready = HttpReady | LineReady | PortReady


@dataclass(frozen=True)
class Component:
    """One process to supervise, or (empty command) an engine started elsewhere.

    It is started when every component named in `after` is ready. `grace_s` is the time between
    SIGTERM and SIGKILL, `start_timeout_s` the time it has to become ready.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    ready: Ready
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    on_exit: ExitPolicy = "stop"
    url: str = ""
    role: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    start_timeout_s: float = 300.0
    grace_s: float = 10.0

    @property
    def external(self) -> bool:
        return not self.command


@dataclass(frozen=True)
class Layout:
    """A stack before it is started: its components and the files they read."""

    components: tuple[Component, ...]
    engines: tuple[EngineEndpoint, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    router_url: str = ""
