"""From settings to components. Pure: no file, process or socket is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent_runtime.config import DEFAULT_BOOTSTRAP_PORT, EngineEndpoint, ExitPolicy, StackConfig
from agent_runtime.settings import dump_yaml
from agent_runtime.stack import commands
from agent_runtime.stack.commands import EnginePorts, Programs
from agent_runtime.stack.component import Component, HttpReady, Layout, LineReady, PortReady
from agent_runtime.stack.names import NamedEngine, named_engines
from agent_runtime.stack.ports import PortRequest
from agent_runtime.stack.validate import validate
from dualpath_sglang.contract.addresses import host_port, http_url


def port_requests(config: StackConfig) -> Iterator[PortRequest]:
    """Every port the stack has to hold, with the setting that may fix it."""
    if _starts_master(config):
        yield PortRequest("master", "store.master_port", config.store.master_port)
        yield PortRequest("metrics", "store.metrics_port", config.store.metrics_port)
    for engine in named_engines(config):
        group = engine.group
        if group.url:
            continue
        http = group.port + engine.index if group.port else 0
        yield PortRequest(f"{engine.name}.http", f"{engine.where}.port", http)
        yield PortRequest(f"{engine.name}.nccl", f"{engine.where}.flags.nccl-port")
        if group.role == "prefill":
            wanted = group.bootstrap_port + engine.index if group.bootstrap_port else 0
            setting = f"{engine.where}.bootstrap_port"
            yield PortRequest(f"{engine.name}.bootstrap", setting, wanted)
    if config.start_router:
        yield PortRequest("router", "router.port", config.router.port)


def build(
    config: StackConfig,
    ports: Mapping[str, int],
    run_dir: Path,
    socket_dir: Path,
    programs: Programs,
    no_proxy: str = "",
) -> Layout:
    """The components of a stack. `ports` answers `port_requests`; `socket_dir` is short, because
    the path of a unix socket may have 107 bytes only. `no_proxy`: the variable as it is here."""
    validate(config)
    parts = _store_components(config, ports, programs)
    master = config.store.master_url or (
        host_port(commands.store_host(config), ports["master"]) if _starts_master(config) else ""
    )
    needs = tuple(part.name for part in parts)
    endpoints = []
    engines = named_engines(config)
    # A plain engine beside a pair is there to be compared with; the router has no use for it.
    all_plain = all(engine.group.role == "plain" for engine in engines)
    for engine in engines:
        after = () if engine.group.role == "plain" else needs
        parts.append(_engine(config, engine, ports, master, after, programs))
        if all_plain or engine.group.role != "plain":
            endpoints.append(_endpoint(config, engine, ports))
    files: dict[Path, str] = {}
    router_url = ""
    if config.start_router:
        router = _router(config, ports, run_dir, programs)
        router_url = router.url
        parts.append(router)
        text = _router_yaml(config, ports, endpoints, run_dir, socket_dir)
        files[run_dir / "router.yaml"] = text
        if config.start_renderer:
            parts.append(_renderer(config, socket_dir, programs))
    direct = commands.direct_env(config, no_proxy)
    parts = [
        dataclasses.replace(
            part,
            env={**direct, **part.env},
            start_timeout_s=config.start_timeout_s,
            grace_s=config.stop_grace_s,
        )
        for part in parts
    ]
    return Layout(tuple(parts), tuple(endpoints), files, router_url)


# --- the store ----------------------------------------------------------------------------


def _starts_master(config: StackConfig) -> bool:
    engines = named_engines(config)
    # A stack without engines is a store for engines of other stacks.
    shared = not engines or any(e.group.role != "plain" for e in engines)
    return config.store.enabled and not config.store.master_url and shared


def _store_components(
    config: StackConfig, ports: Mapping[str, int], programs: Programs
) -> list[Component]:
    parts = []
    master, prefix = config.store.master_url, config.store.command_prefix
    if _starts_master(config):
        rpc, metrics = ports["master"], ports["metrics"]
        flags = commands.to_argv(commands.master_flags(config, rpc, metrics), equals=True)
        host = commands.store_host(config)
        master = host_port(host, rpc)
        parts.append(
            Component(
                name="master",
                kind="master",
                command=(*prefix, *programs.master, *flags),
                ready=PortReady(host, rpc),
                on_exit=config.on_child_exit.master,
                url=master,
                ports={"rpc": rpc, "metrics": metrics},
            )
        )
    if config.store.enabled and master and config.store.segment_bytes:
        parts.append(
            Component(
                name="store",
                kind="store",
                command=(*prefix, *commands.store_argv(config, programs, master)),
                ready=LineReady(),
                env=commands.mooncake_env(config.store.protocol, commands.store_host(config)),
                after=tuple(p.name for p in parts),
                on_exit=config.on_child_exit.store,
            )
        )
    return parts


# --- engines ------------------------------------------------------------------------------


def _engine(
    config: StackConfig,
    engine: NamedEngine,
    ports: Mapping[str, int],
    master: str,
    after: tuple[str, ...],
    programs: Programs,
) -> Component:
    group = engine.group
    policy: ExitPolicy = group.on_child_exit or config.on_child_exit.engines
    if group.url:
        url = group.url.rstrip("/")
        ready = HttpReady(f"{url}/health")
        return Component(engine.name, "engine", (), ready, url=url, role=group.role)
    names = ("http", "nccl", "bootstrap")
    held = {n: ports[f"{engine.name}.{n}"] for n in names if f"{engine.name}.{n}" in ports}
    flags = commands.engine_flags(config, group, EnginePorts(**held))
    url = http_url(commands.group_host(config, group), held["http"])
    return Component(
        name=engine.name,
        kind="engine",
        command=(*group.command_prefix, *programs.engine, *commands.to_argv(flags)),
        ready=HttpReady(f"{url}/health"),
        env=commands.engine_env(config, group, master),
        after=after,
        on_exit=policy,
        url=url,
        role=group.role,
        ports=held,
    )


def _endpoint(config: StackConfig, engine: NamedEngine, ports: Mapping[str, int]) -> EngineEndpoint:
    group, prefill = engine.group, engine.group.role == "prefill"
    if group.url:
        host = urlsplit(group.url).hostname or ""
        return EngineEndpoint(
            name=engine.name,
            role=group.role,
            url=group.url.rstrip("/"),
            bootstrap_host=host if prefill else "",
            bootstrap_port=(group.bootstrap_port or DEFAULT_BOOTSTRAP_PORT) if prefill else 0,
        )
    host = commands.group_host(config, group)
    return EngineEndpoint(
        name=engine.name,
        role=group.role,
        url=http_url(host, ports[f"{engine.name}.http"]),
        bootstrap_host=host if prefill else "",
        bootstrap_port=ports[f"{engine.name}.bootstrap"] if prefill else 0,
    )


# --- router and renderer ------------------------------------------------------------------


# Neither waits for the engines: both are up long before the first of them.


def _renderer(config: StackConfig, socket_dir: Path, programs: Programs) -> Component:
    words = ("--model-path", config.model.path, "--socket", str(socket_dir / "renderer.sock"))
    return Component(
        name="renderer",
        kind="renderer",
        command=(*programs.renderer, *words),
        ready=LineReady(),
        on_exit=config.on_child_exit.renderer,
    )


def _router(
    config: StackConfig, ports: Mapping[str, int], run_dir: Path, programs: Programs
) -> Component:
    return Component(
        name="router",
        kind="router",
        command=(*programs.router, "--config", str(run_dir / "router.yaml")),
        ready=LineReady(),
        on_exit=config.on_child_exit.router,
        url=http_url(_reachable(config.router.host), ports["router"]),
        ports={"http": ports["router"]},
    )


def _router_yaml(
    config: StackConfig,
    ports: Mapping[str, int],
    endpoints: list[EngineEndpoint],
    run_dir: Path,
    socket_dir: Path,
) -> str:
    router = config.router
    socket = str(socket_dir / "renderer.sock") if config.start_renderer else router.renderer_socket
    filled = msgspec.structs.replace(
        router,
        port=ports["router"],
        insecure=router.insecure or config.insecure,
        engines=tuple(endpoints),
        model_path=router.model_path or config.model.path,
        model_name=router.model_name or commands.model_name(config),
        context_length=router.context_length or config.context_length,
        database=router.database or str(run_dir / "sessions.sqlite"),
        renderer_socket=socket,
        store_admin_url=router.store_admin_url or _store_admin_url(config, ports),
    )
    return dump_yaml(filled)


def _store_admin_url(config: StackConfig, ports: Mapping[str, int]) -> str:
    """Of the master started here; that of a master elsewhere is for the user to name."""
    if "metrics" not in ports:
        return ""
    return http_url(commands.store_host(config), ports["metrics"])


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
