"""Every setting of a stack, with its type, limits, default and text, in one place.

Flags, environment variables, YAML files, `config-docs` and the JSON schema are derived from these
frozen structs by `agent_runtime.settings`; a default is never written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from dualpath_sglang.contract.kinds import (
    Count,
    Number,
    OwnerName,
    Port,
    Positive,
    Seconds,
    Secret,
    SomeSeconds,
    about,
)

ExitPolicy = Literal["stop", "keep", "restart"]
GroupExitPolicy = Literal["", "stop", "keep", "restart"]
Role = Literal["prefill", "decode", "plain"]
PolicyName = Literal[
    "round_robin", "random", "session_affinity", "cache_affinity", "paper", "dualpath"
]
SplitPolicy = Literal[
    "auto", "best", "split", "round_robin", "shorter_queue", "prefill_path", "decode_path", "none"
]
Scalar = str | int | Number | bool
"""A value of one SGLang flag: `true` passes the bare flag, `false` leaves it out."""

GIB = 1024**3
CPU_MAX_TOTAL_TOKENS = 16_384
"""KV pool on a CPU when `max_total_tokens` is 0: SGLang's own choice would take all memory."""
DEFAULT_BOOTSTRAP_PORT = 8998
"""SGLang's own, for prefill engines started elsewhere."""


class EngineEndpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """One running engine as the router sees it."""

    name: Annotated[str, about("unique name, shown in placements and metrics")] = ""
    role: Annotated[Role, about("prefill, decode, or plain: one ordinary engine without P/D")] = (
        "prefill"
    )
    url: Annotated[str, about("base URL, http://host:port")] = ""
    bootstrap_host: Annotated[str, about("prefill only: host of the P/D bootstrap server")] = ""
    bootstrap_port: Annotated[Port, about("prefill only: port of the P/D bootstrap server")] = 0


class RouterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP front door."""

    host: Annotated[str, about("address to listen on")] = "127.0.0.1"
    port: Annotated[Port, about("port to listen on (0: pick a free one)")] = 30_000
    keys: Annotated[
        Mapping[OwnerName, Secret],
        about(
            "API keys by the name of their owner: `Authorization: Bearer KEY` or `x-api-key: KEY`; "
            "sessions belong to the owner whose key made them (none: no key is asked for)"
        ),
    ] = {}
    admin_key: Annotated[
        Secret, about("the key of /admin (empty: any of `keys`); it opens no sessions")
    ] = ""
    protect_metrics: Annotated[bool, about("GET /metrics too wants a key that opens /admin")] = (
        False
    )
    insecure: Annotated[
        bool, about("listen on other addresses than this machine's own without keys")
    ] = False
    engines: Annotated[
        tuple[EngineEndpoint, ...], about("the fleet; filled in by `dualpath up`")
    ] = ()
    model_path: Annotated[
        str, about("model folder; its config.json bounds token ids and context")
    ] = ""
    model_name: Annotated[str, about("served model name")] = ""
    context_length: Annotated[
        Count, about("most tokens of prompt plus output (0: ask the engines)")
    ] = 0
    database: Annotated[
        str,
        about("SQLite file with the sessions (empty: in memory; `dualpath up`: in the run folder)"),
    ] = ""
    policy: Annotated[PolicyName, about("placement policy")] = "round_robin"
    split_policy: Annotated[
        SplitPolicy,
        about(
            "who reads a cached prefix from the store: best (both at once, as queues, rates and "
            "what is in memory make it fastest), split (both at once, in constant shares), "
            "round_robin (the two paths in turn), shorter_queue, prefill_path, decode_path, none "
            "(no plans), or auto (what the placement policy does by itself: best for dualpath, "
            "shorter_queue for paper, split for the others)"
        ),
    ] = "split"
    store_admin_url: Annotated[
        str,
        about(
            "metrics port of the store's master, http://host:port (empty: no plans; `dualpath up` "
            "fills in that of the master it starts)"
        ),
    ] = ""
    store_timeout_s: Annotated[
        SomeSeconds, about("a query to the store's master without answer: no plan")
    ] = 1.0
    known_pages_ttl_s: Annotated[
        Seconds, about("how long a page seen in the store counts as there")
    ] = 3.0
    plan_deadline_s: Annotated[
        SomeSeconds, about("engines give up loading by plan after this and go on without")
    ] = 10.0
    renderer_socket: Annotated[
        str, about("unix socket of the renderer process (empty: only token ids are accepted)")
    ] = ""
    turn_deadline_s: Annotated[
        SomeSeconds,
        about("a turn that is not done by then fails; `deadline_s` of a turn wins"),
    ] = 300.0
    default_max_new_tokens: Annotated[Positive, about("output limit of a turn that names none")] = (
        128
    )
    max_body_bytes: Annotated[Positive, about("largest request body accepted")] = 8 * 1024 * 1024
    max_sessions: Annotated[Positive, about("most sessions, live and stored")] = 100_000
    loaded_sessions: Annotated[
        Positive,
        about("sessions kept in memory; the least recently used are read again from the database"),
    ] = 4096
    max_inflight: Annotated[Positive, about("most turns on the engines; more wait")] = 1024
    max_waiting: Annotated[Count, about("most turns that wait; more are answered 503")] = 1024
    no_engine_wait_s: Annotated[
        Seconds, about("a turn waits so long for an engine to come back when none is healthy")
    ] = 10.0
    health_interval_s: Annotated[
        SomeSeconds, about("pause between two health checks of an engine that answers")
    ] = 2.0
    health_timeout_s: Annotated[
        SomeSeconds, about("a health check without answer (SGLang itself takes up to 20 s)")
    ] = 22.0
    health_failures: Annotated[
        Positive,
        about("unanswered checks in a row before an engine is unhealthy; a refused connection: 1"),
    ] = 2
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("least severe shown")
    ] = "info"


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What the engines serve."""

    path: Annotated[
        str, about("model folder, with config.json, weights, tokenizer and chat template")
    ] = ""
    served_name: Annotated[
        str, about("name of the model in replies (empty: the folder's name)")
    ] = ""


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The Mooncake store that all prefill and decode engines share."""

    enabled: Annotated[
        bool, about("give the engines a store; without it only their own caches")
    ] = True
    segment_bytes: Annotated[
        Count, about("memory of the storage node started here (0: start none)")
    ] = GIB
    protocol: Annotated[
        Literal["tcp", "rdma"],
        about("how bytes travel to and from the store and on the second path"),
    ] = "tcp"
    device_name: Annotated[str, about("RDMA device (empty: Mooncake chooses; unused with tcp)")] = (
        ""
    )
    master_url: Annotated[
        str, about("host:port of a master started elsewhere (empty: start one)")
    ] = ""
    master_port: Annotated[Port, about("RPC port of the master started here (0: pick one)")] = 0
    metrics_port: Annotated[Port, about("its metrics port (0: pick one)")] = 0
    master_flags: Annotated[
        Mapping[str, Scalar], about("more mooncake_master flags, key: value")
    ] = {}
    prefetch_threshold: Annotated[
        Count, about("fewest tokens worth reading from the store (0: one page)")
    ] = 0
    host: Annotated[
        str, about("address of the master and storage node started here (empty: host)")
    ] = ""
    command_prefix: Annotated[
        tuple[str, ...], about("words before their commands, such as nsenter --net=...")
    ] = ()


class EngineGroup(Struct, frozen=True, forbid_unknown_fields=True):
    """Some equal engines, started here or (`url`) elsewhere."""

    role: Annotated[
        Role,
        about(
            "prefill, decode, or plain: one ordinary engine without P/D, cache tiers or store; the "
            "router serves plain engines where there are no others"
        ),
    ] = "prefill"
    count: Annotated[Count, about("how many engines")] = 1
    name: Annotated[str, about("name prefix (empty: the role)")] = ""
    url: Annotated[
        str, about("base URL of one engine started elsewhere; nothing is started then")
    ] = ""
    port: Annotated[Port, about("HTTP port of the first engine, the next follow (0: pick)")] = 0
    bootstrap_port: Annotated[
        Port,
        about(
            "prefill: bootstrap port, the next follow (0: pick; with url: "
            f"{DEFAULT_BOOTSTRAP_PORT})"
        ),
    ] = 0
    flags: Annotated[
        Mapping[str, Scalar],
        about("more SGLang flags, key: value; they win over the generated ones"),
    ] = {}
    env: Annotated[Mapping[str, str], about("more environment variables of these engines")] = {}
    host: Annotated[
        str, about("address these engines listen on and are reached at (empty: host)")
    ] = ""
    store_host: Annotated[
        str, about("their address for store traffic, on a network of its own (empty: as host)")
    ] = ""
    command_prefix: Annotated[
        tuple[str, ...],
        about("words before their commands, such as nsenter --net=... or numactl ..."),
    ] = ()
    on_child_exit: Annotated[
        GroupExitPolicy, about("as on_child_exit.engines, for this group only")
    ] = ""


class ExitPolicies(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a component ends by itself after the stack is up.

    stop: everything stops. keep: the others go on. restart: it is started again on the same
    ports, at most `max_restarts` times within `restart_window_s`; then everything stops.
    """

    master: Annotated[ExitPolicy, about("mooncake_master: stop, keep or restart")] = "stop"
    store: Annotated[ExitPolicy, about("the storage node: stop, keep or restart")] = "stop"
    engines: Annotated[ExitPolicy, about("prefill, decode and plain engines")] = "stop"
    renderer: Annotated[ExitPolicy, about("the renderer process")] = "stop"
    router: Annotated[ExitPolicy, about("the router process")] = "stop"


class StackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `dualpath up` starts."""

    model: Annotated[ModelConfig, about("the model")] = ModelConfig()
    cpu: Annotated[bool, about("run the engines on the CPU")] = False
    cpu_threads: Annotated[Positive, about("threads of one engine on the CPU")] = 1
    dtype: Annotated[str, about("weights and activations (empty: SGLang's choice)")] = ""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1), about("random seed of the engines")] = 0
    page_size: Annotated[Positive, about("tokens per KV page")] = 16
    max_total_tokens: Annotated[
        Count,
        about(
            "KV pool of one engine in tokens (0: SGLang's choice; on the CPU "
            f"{CPU_MAX_TOTAL_TOKENS})"
        ),
    ] = 0
    context_length: Annotated[
        Count, about("most tokens of prompt plus output (0: the model's)")
    ] = 0
    hicache_ratio: Annotated[
        float,
        Meta(ge=0, le=1e6),
        about("host KV pool / device KV pool; half of it bounds concurrent store reads"),
    ] = 2.0
    prefetch_policy: Annotated[
        Literal["best_effort", "wait_complete", "timeout"],
        about("how long a prefill waits for pages on their way from the store"),
    ] = "wait_complete"
    host: Annotated[str, about("address engines and store listen on and are reached at")] = (
        "127.0.0.1"
    )
    hooks: Annotated[
        Literal["all", "reports", "cpu", "off"],
        about(
            "what the plugin changes in prefill and decode engines: all (the second path), reports "
            "(upstream's caching, with each engine's own account), cpu (upstream, able to run "
            "without a GPU) or off"
        ),
    ] = "all"
    store: Annotated[StoreConfig, about("the Mooncake store")] = StoreConfig()
    engines: Annotated[
        tuple[EngineGroup, ...],
        about("groups of engines (default: one prefill and one decode)"),
    ] = (EngineGroup(role="prefill"), EngineGroup(role="decode"))
    insecure: Annotated[bool, about("as router.insecure")] = False
    start_router: Annotated[bool, about("start the router")] = True
    start_renderer: Annotated[
        bool, about("start the renderer (text and messages become tokens)")
    ] = True
    router: Annotated[RouterConfig, about("the router")] = RouterConfig()
    on_child_exit: Annotated[ExitPolicies, about("what happens when a component ends")] = (
        ExitPolicies()
    )
    max_restarts: Annotated[Count, about("restarts of one component before giving up")] = 3
    restart_window_s: Annotated[
        Seconds, about("older restarts no longer count against max_restarts")
    ] = 600.0
    run_dir: Annotated[str, about("folder of status.json, sockets and generated files")] = ".run"
    log_dir: Annotated[
        str, about("folder with one log file per component (empty: run_dir/logs)")
    ] = ""
    start_timeout_s: Annotated[
        Seconds, about("a component that is not ready by then has failed")
    ] = 300.0
    stop_grace_s: Annotated[Seconds, about("seconds between SIGTERM and SIGKILL when stopping")] = (
        10.0
    )

    @property
    def kv_tokens(self) -> int:
        """Tokens of one engine's KV pool; 0 leaves it to SGLang."""
        return self.max_total_tokens or (CPU_MAX_TOTAL_TOKENS if self.cpu else 0)
