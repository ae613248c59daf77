"""Settings that are each legal but do not fit together. Pure; `check-config` runs it too."""

from __future__ import annotations

from agent_runtime.config import EngineGroup, StackConfig
from agent_runtime.owners import EXPOSED, Keys, is_exposed
from agent_runtime.stack.commands import UNSERVABLE, second_path
from agent_runtime.stack.names import NamedEngine, named_engines
from dualpath_sglang.contract.addresses import is_host, is_http_url, is_ipv6, split_host_port
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.errors import ConfigError

OWNED_FLAGS = {
    "host": "host",
    "port": "{}.port",
    "nccl-port": "no value of your own, it is picked",
    "model-path": "model.path",
    "served-model-name": "model.served_name",
    "disaggregation-mode": "{}.role",
    "disaggregation-bootstrap-port": "{}.bootstrap_port",
}
"""Flags that the router and the supervisor must know; the setting that holds each."""


def validate(config: StackConfig) -> None:
    """Raise ConfigError for settings that are each legal but do not fit together."""
    engines = named_engines(config)
    for g, group in enumerate(config.engines):
        _check_group(group, f"engines[{g}]")
    _check_names(engines)
    roles = {e.group.role for e in engines}
    if config.start_router and not ({"prefill", "decode"} <= roles or roles == {"plain"}):
        raise ConfigError(
            "engines: the router needs at least one prefill and one decode engine, or plain ones "
            "alone; add them or set start_router: false",
            field="engines",
        )
    if config.router.engines:
        message = "router.engines is filled in by the stack; list engines started elsewhere under"
        raise ConfigError(f"{message} engines, each with its url", field="router.engines")
    _check_hosts(config)
    reads_model = config.start_router and config.start_renderer
    if not config.model.path and (reads_model or any(not e.group.url for e in engines)):
        message = "model.path is not set; give the folder of the model (--model PATH)"
        raise ConfigError(message, field="model.path")
    _check_keys(config)
    _check_served_name(config.model.served_name)
    _check_master(config.store.master_url)
    _check_families(config)
    if config.router.store_admin_url:
        _check_url(config.router.store_admin_url, "router.store_admin_url")
    _check_prefetch_policy(config, engines)


def _check_group(group: EngineGroup, where: str) -> None:
    for key in group.flags:
        instead = OWNED_FLAGS.get(key.replace("_", "-"))
        if instead is not None:
            field = f"{where}.flags.{key}"
            message = f"{field}: the stack sets this flag itself; use {instead.format(where)}"
            raise ConfigError(message, field=field)
    _check_engine_settings(group, where)
    if not group.url:
        if group.bootstrap_port and group.role != "prefill":
            message = f"{where}.bootstrap_port: only prefill engines have one"
            raise ConfigError(message, field=f"{where}.bootstrap_port")
        return
    _check_url(group.url, f"{where}.url")
    if group.count != 1:
        message = f"{where}.count: a group with a url is one engine; write one group per engine"
        raise ConfigError(message, field=f"{where}.count")
    for key in ("port", "flags", "env", "host", "store_host", "command_prefix", "on_child_exit"):
        if getattr(group, key):
            message = f"{where}.{key} has no effect on an engine started elsewhere (url is set)"
            raise ConfigError(f"{message}; remove one of them", field=f"{where}.{key}")


def _check_engine_settings(group: EngineGroup, where: str) -> None:
    try:
        EngineConfig.from_env(group.env)
    except ConfigError as error:
        # Its message begins with the variable's name.
        field = f"{where}.env.{error.field}"
        raise ConfigError(f"{where}.env.{error.message}", field=field) from error


def _check_hosts(config: StackConfig) -> None:
    hosts = {"host": config.host, "store.host": config.store.host or config.host}
    for g, group in enumerate(config.engines):
        hosts[f"engines[{g}].host"] = group.host or config.host
        hosts[f"engines[{g}].store_host"] = group.store_host or config.host
    for field, host in {**hosts, "router.host": config.router.host}.items():
        if host and not is_host(host):
            message = (
                f"{field}: expected a name or an address (IPv6 without brackets), got {host!r}"
            )
            raise ConfigError(message, field=field)
    for field, host in hosts.items():
        if host in ("0.0.0.0", "::", ""):
            raise ConfigError(
                f"{field}: {host!r} is no address that components can reach each other at; give "
                "the address of one interface",
                field=field,
            )


def _check_families(config: StackConfig) -> None:
    """A process with Mooncake reaches IPv6 addresses or others, as its environment says."""
    hosts = {"host": config.host, "store.host": config.store.host}
    for g, group in enumerate(config.engines):
        if not group.url:
            hosts |= {
                f"engines[{g}].host": group.host,
                f"engines[{g}].store_host": group.store_host,
            }
    if config.store.master_url:
        hosts["store.master_url"] = split_host_port(config.store.master_url)[0]
    for field, host in hosts.items():
        if host and is_ipv6(host) != is_ipv6(config.host):
            message = (
                f"{field} is {host} and host is {config.host}: Mooncake reaches IPv6 addresses"
            )
            raise ConfigError(f"{message} or others, not both", field=field)


def _check_names(engines: tuple[NamedEngine, ...]) -> None:
    taken = {"master": "the master", "store": "the storage node"}
    taken |= {"renderer": "the renderer", "router": "the router"}
    for engine in engines:
        if engine.name in taken:
            message = f"{engine.where}.name: {engine.name!r} is already {taken[engine.name]}"
            raise ConfigError(message, field=f"{engine.where}.name")
        taken[engine.name] = engine.where


def _check_url(url: str, field: str) -> None:
    if not is_http_url(url):
        message = f"{field}: expected http://host:port, got {url!r}"
        hint = "; an IPv6 address stands in brackets" if url.count(":") > 2 else ""
        raise ConfigError(message + hint, field=field)


def _check_master(master_url: str) -> None:
    if not master_url:
        return
    try:
        split_host_port(master_url)
    except ValueError as error:
        message = f"store.master_url: expected host:port, got {master_url!r}"
        raise ConfigError(message, field="store.master_url") from error


def _check_keys(config: StackConfig) -> None:
    router = config.router
    Keys(router.keys, router.admin_key)
    insecure = config.insecure or router.insecure
    if config.start_router and is_exposed(router.host, router.keys, insecure):
        raise ConfigError(f"router.host is {router.host}: {EXPOSED}", field="router.host")


def _check_served_name(name: str) -> None:
    found = UNSERVABLE.search(name)
    if found is not None or name != name.strip():
        character = repr(found[0][0]) if found else "a space at an end"
        message = f"model.served_name: {name!r} has {character}, which no served name may have"
        raise ConfigError(message, field="model.served_name")


def _check_prefetch_policy(config: StackConfig, engines: tuple[NamedEngine, ...]) -> None:
    """What `secondpath/checks.py` would refuse only once an engine has loaded its model."""
    started = [e for e in engines if not e.group.url and e.group.role != "plain"]
    if started and second_path(config) and config.prefetch_policy == "best_effort":
        raise ConfigError(
            "prefetch_policy: the second path (hooks: all, with a store) does not work with "
            "best_effort; use wait_complete or timeout",
            field="prefetch_policy",
        )
