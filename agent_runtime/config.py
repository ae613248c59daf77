"""Every setting of a stack, with its default, in one place.

Flags, environment variables, YAML files and `docs` are derived from these frozen
dataclasses by `agent_runtime.settings`; a default is never written twice. The `help`
in a field's metadata is the one text shown to users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ExitPolicy = Literal["stop", "keep", "restart"]
Role = Literal["prefill", "decode"]


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its help text; mutable defaults are passed as a factory."""
    if callable(default):
        return field(default_factory=default, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EngineEndpoint:
    """One running engine as the router sees it."""

    name: str = setting("", "unique name, shown in placements and metrics")
    role: Role = setting("prefill", "prefill or decode")
    url: str = setting("", "base URL, http://host:port")
    bootstrap_host: str = setting("", "prefill only: host of the P/D bootstrap server")
    bootstrap_port: int = setting(0, "prefill only: port of the P/D bootstrap server")


@dataclass(frozen=True)
class RouterConfig:
    """The HTTP front door."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(0, "port to listen on (0: pick a free one)")
    engines: tuple[EngineEndpoint, ...] = setting((), "the fleet; filled in by `dualpath up`")
    model_path: str = setting("", "model folder, read by the renderer for tokenizer and template")
    model_name: str = setting("", "served model name")
    context_length: int = setting(0, "most tokens of prompt plus output (0: ask the engines)")
    database: str = setting("", "SQLite file with the sessions (empty: in the run folder)")
    policy: str = setting("round_robin", "placement policy")
    renderer_socket: str = setting("", "unix socket of the renderer process")
    turn_deadline_s: float = setting(300.0, "a turn that is not done by then fails")
    max_body_bytes: int = setting(8 * 1024 * 1024, "largest request body accepted")
    max_sessions: int = setting(100_000, "most live sessions")
    max_inflight: int = setting(1024, "most turns in flight; more are answered 503")
    log_level: str = setting("info", "debug, info, warning or error")
