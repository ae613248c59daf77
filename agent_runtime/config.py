"""Every setting of a stack, with its default, in one place.

Flags, environment variables, YAML files and `docs` are derived from these frozen
dataclasses by `agent_runtime.settings`; a default is never written twice. The `help`
in a field's metadata is the one text shown to users.
"""

# ruff: noqa: RUF009 -- `setting` is dataclasses.field with a help text.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ExitPolicy = Literal["stop", "keep", "restart"]
GroupExitPolicy = Literal["", "stop", "keep", "restart"]
Role = Literal["prefill", "decode", "plain"]
PolicyName = Literal["round_robin"]
SplitPolicy = Literal[
    "split", "round_robin", "shorter_queue", "prefill_path", "decode_path", "none"
]
Scalar = str | int | float | bool
"""A value of one SGLang flag: `true` passes the bare flag, `false` leaves it out."""

GIB = 1024**3
CPU_MAX_TOTAL_TOKENS = 16_384
"""KV pool on a CPU when `max_total_tokens` is 0: SGLang's own choice would take all memory."""
DEFAULT_BOOTSTRAP_PORT = 8998
"""SGLang's own, for prefill engines started elsewhere."""


def setting(default: Any, help: str, *, at_least: float | None = None) -> Any:
    """A dataclass field with its help text; mutable defaults are passed as a factory.

    `at_least` is the smallest legal number; the loader enforces it.
    """
    metadata = {"help": help, "at_least": at_least}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EngineEndpoint:
    """One running engine as the router sees it."""

    name: str = setting("", "unique name, shown in placements and metrics")
    role: Role = setting("prefill", "prefill, decode, or plain: one ordinary engine without P/D")
    url: str = setting("", "base URL, http://host:port")
    bootstrap_host: str = setting("", "prefill only: host of the P/D bootstrap server")
    bootstrap_port: int = setting(0, "prefill only: port of the P/D bootstrap server")


@dataclass(frozen=True)
class RouterConfig:
    """The HTTP front door."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(0, "port to listen on (0: pick a free one)", at_least=0)
    engines: tuple[EngineEndpoint, ...] = setting((), "the fleet; filled in by `dualpath up`")
    model_path: str = setting("", "model folder; its config.json bounds token ids and context")
    model_name: str = setting("", "served model name")
    context_length: int = setting(
        0, "most tokens of prompt plus output (0: ask the engines)", at_least=0
    )
    database: str = setting(
        "", "SQLite file with the sessions (empty: in memory; `dualpath up`: in the run folder)"
    )
    policy: PolicyName = setting("round_robin", "placement policy")
    split_policy: SplitPolicy = setting(
        "split",
        "who reads a cached prefix from the store: split (both engines at once), round_robin "
        "(the two paths in turn), shorter_queue, prefill_path, decode_path, or none (no plans)",
    )
    store_admin_url: str = setting(
        "",
        "metrics port of the store's master, http://host:port (empty: no plans; `dualpath up` "
        "fills in that of the master it starts)",
    )
    store_timeout_s: float = setting(
        1.0, "a query to the store's master without answer: no plan", at_least=0.001
    )
    known_pages_ttl_s: float = setting(
        3.0, "how long a page seen in the store counts as there", at_least=0
    )
    plan_deadline_s: float = setting(
        10.0, "engines give up loading by plan after this and go on without", at_least=0.001
    )
    renderer_socket: str = setting(
        "", "unix socket of the renderer process (empty: only token ids are accepted)"
    )
    turn_deadline_s: float = setting(
        300.0, "a turn that is not done by then fails; `deadline_s` of a turn wins", at_least=0.001
    )
    default_max_new_tokens: int = setting(128, "output limit of a turn that names none", at_least=1)
    max_body_bytes: int = setting(8 * 1024 * 1024, "largest request body accepted", at_least=1)
    max_sessions: int = setting(100_000, "most sessions, live and stored", at_least=1)
    loaded_sessions: int = setting(
        4096,
        "sessions kept in memory; the least recently used are read again from the database",
        at_least=1,
    )
    max_inflight: int = setting(1024, "most turns on the engines; more wait", at_least=1)
    max_waiting: int = setting(1024, "most turns that wait; more are answered 503", at_least=0)
    no_engine_wait_s: float = setting(
        10.0, "a turn waits so long for an engine to come back when none is healthy", at_least=0
    )
    health_interval_s: float = setting(
        2.0, "pause between two health checks of an engine that answers", at_least=0.01
    )
    health_timeout_s: float = setting(
        22.0, "a health check without answer (SGLang itself takes up to 20 s)", at_least=0.01
    )
    health_failures: int = setting(
        2,
        "unanswered checks in a row before an engine is unhealthy; a refused connection: 1",
        at_least=1,
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "least severe shown")


@dataclass(frozen=True)
class ModelConfig:
    """What the engines serve."""

    path: str = setting("", "model folder, with config.json, weights, tokenizer and chat template")
    served_name: str = setting("", "name of the model in replies (empty: the folder's name)")


@dataclass(frozen=True)
class StoreConfig:
    """The Mooncake store that all prefill and decode engines share."""

    enabled: bool = setting(True, "give the engines a store; without it only their own caches")
    segment_bytes: int = setting(
        GIB, "memory of the storage node started here (0: start none)", at_least=0
    )
    protocol: Literal["tcp", "rdma"] = setting(
        "tcp", "how bytes travel to and from the store and on the second path"
    )
    device_name: str = setting("", "RDMA device (empty: Mooncake chooses; unused with tcp)")
    master_url: str = setting("", "host:port of a master started elsewhere (empty: start one)")
    master_port: int = setting(0, "RPC port of the master started here (0: pick one)", at_least=0)
    metrics_port: int = setting(0, "its metrics port (0: pick one)", at_least=0)
    master_flags: Mapping[str, Scalar] = setting(dict, "more mooncake_master flags, key: value")
    prefetch_threshold: int = setting(
        0, "fewest tokens worth reading from the store (0: one page)", at_least=0
    )
    host: str = setting("", "address of the master and storage node started here (empty: host)")
    command_prefix: tuple[str, ...] = setting(
        (), "words before their commands, such as nsenter --net=..."
    )


@dataclass(frozen=True)
class EngineGroup:
    """Some equal engines, started here or (`url`) elsewhere."""

    role: Role = setting(
        "prefill",
        "prefill, decode, or plain: one ordinary engine without P/D, cache tiers or store; the "
        "router serves plain engines where there are no others",
    )
    count: int = setting(1, "how many engines", at_least=0)
    name: str = setting("", "name prefix (empty: the role)")
    url: str = setting("", "base URL of one engine started elsewhere; nothing is started then")
    port: int = setting(0, "HTTP port of the first engine, the next follow (0: pick)", at_least=0)
    bootstrap_port: int = setting(
        0,
        f"prefill: bootstrap port, the next follow (0: pick; with url: {DEFAULT_BOOTSTRAP_PORT})",
        at_least=0,
    )
    flags: Mapping[str, Scalar] = setting(
        dict, "more SGLang flags, key: value; they win over the generated ones"
    )
    env: Mapping[str, str] = setting(dict, "more environment variables of these engines")
    host: str = setting("", "address these engines listen on and are reached at (empty: host)")
    store_host: str = setting(
        "", "their address for store traffic, on a network of its own (empty: as host)"
    )
    command_prefix: tuple[str, ...] = setting(
        (), "words before their commands, such as nsenter --net=... or numactl ..."
    )
    on_child_exit: GroupExitPolicy = setting("", "as on_child_exit.engines, for this group only")


@dataclass(frozen=True)
class ExitPolicies:
    """What happens when a component ends by itself after the stack is up.

    stop: everything stops. keep: the others go on. restart: it is started again on the same
    ports, at most `max_restarts` times within `restart_window_s`; then everything stops.
    """

    master: ExitPolicy = setting("stop", "mooncake_master: stop, keep or restart")
    store: ExitPolicy = setting("stop", "the storage node: stop, keep or restart")
    engines: ExitPolicy = setting("stop", "prefill, decode and plain engines")
    renderer: ExitPolicy = setting("stop", "the renderer process")
    router: ExitPolicy = setting("stop", "the router process")


def _one_prefill_one_decode() -> tuple[EngineGroup, ...]:
    return (EngineGroup(role="prefill"), EngineGroup(role="decode"))


@dataclass(frozen=True)
class StackConfig:
    """Everything `dualpath up` starts."""

    model: ModelConfig = setting(ModelConfig, "the model")
    cpu: bool = setting(False, "run the engines on the CPU")
    cpu_threads: int = setting(1, "threads of one engine on the CPU", at_least=1)
    dtype: str = setting("", "weights and activations (empty: SGLang's choice)")
    seed: int = setting(0, "random seed of the engines", at_least=0)
    page_size: int = setting(16, "tokens per KV page", at_least=1)
    max_total_tokens: int = setting(
        0,
        f"KV pool of one engine in tokens (0: SGLang's choice; on the CPU {CPU_MAX_TOTAL_TOKENS})",
        at_least=0,
    )
    context_length: int = setting(
        0, "most tokens of prompt plus output (0: the model's)", at_least=0
    )
    hicache_ratio: float = setting(
        2.0, "host KV pool / device KV pool; half of it bounds concurrent store reads", at_least=0
    )
    prefetch_policy: Literal["best_effort", "wait_complete", "timeout"] = setting(
        "wait_complete", "how long a prefill waits for pages on their way from the store"
    )
    host: str = setting("127.0.0.1", "address engines and store listen on and are reached at")
    hooks: Literal["all", "reports", "cpu", "off"] = setting(
        "all",
        "what the plugin changes in prefill and decode engines: all (the second path), reports "
        "(upstream's caching, with each engine's own account), cpu (upstream, able to run without "
        "a GPU) or off",
    )
    store: StoreConfig = setting(StoreConfig, "the Mooncake store")
    engines: tuple[EngineGroup, ...] = setting(
        _one_prefill_one_decode, "groups of engines (default: one prefill and one decode)"
    )
    start_router: bool = setting(True, "start the router")
    start_renderer: bool = setting(True, "start the renderer (text and messages become tokens)")
    router: RouterConfig = setting(RouterConfig, "the router")
    on_child_exit: ExitPolicies = setting(ExitPolicies, "what happens when a component ends")
    max_restarts: int = setting(3, "restarts of one component before giving up", at_least=0)
    restart_window_s: float = setting(
        600.0, "older restarts no longer count against max_restarts", at_least=0
    )
    run_dir: str = setting(".run", "folder of status.json, sockets and generated files")
    log_dir: str = setting("", "folder with one log file per component (empty: run_dir/logs)")
    start_timeout_s: float = setting(
        300.0, "a component that is not ready by then has failed", at_least=0
    )
    stop_grace_s: float = setting(
        10.0, "seconds between SIGTERM and SIGKILL when stopping", at_least=0
    )

    @property
    def kv_tokens(self) -> int:
        """Tokens of one engine's KV pool; 0 leaves it to SGLang."""
        return self.max_total_tokens or (CPU_MAX_TOTAL_TOKENS if self.cpu else 0)
