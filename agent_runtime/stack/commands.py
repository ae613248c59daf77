"""Command lines and environments of the components. Pure: values in, values out.

Flag names are those of SGLang (`srt/arg_groups/fields`) and mooncake_master 0.3.13.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent_runtime.config import EngineGroup, Scalar, StackConfig
from dualpath_sglang.contract.addresses import is_ipv6

Flags = dict[str, Scalar]
Argv = tuple[str, ...]
PY = sys.executable
UNSERVABLE = re.compile(r"[:,\x00-\x1f\x7f]+")
"""SGLang keeps the colon for LoRA adapters. The name is part of the store's keys, and the master
takes lists of keys apart at commas."""


@dataclass(frozen=True)
class Programs:
    """How each kind of component is called; tests put stubs here."""

    master: Argv = ("mooncake_master",)
    store: Argv = (PY, "-m", "dualpath_sglang.store_node")
    engine: Argv = (PY, "-m", "dualpath_sglang.launch")
    renderer: Argv = (PY, "-m", "dualpath_sglang.renderer")
    router: Argv = (PY, "-m", "agent_runtime.serve")


@dataclass(frozen=True)
class EnginePorts:
    """Ports of one engine. `bootstrap` is 0 unless it is a prefill engine."""

    http: int
    nccl: int
    bootstrap: int = 0


def group_host(config: StackConfig, group: EngineGroup) -> str:
    """Where the engines of a group listen and are reached."""
    return group.host or config.host


def store_host(config: StackConfig) -> str:
    """Where the master and the storage node listen and are reached."""
    return config.store.host or config.host


def model_name(config: StackConfig) -> str:
    """The folder's name without what no served name may have."""
    folder = Path(config.model.path).resolve().name
    return config.model.served_name or UNSERVABLE.sub("-", folder)


def direct_env(config: StackConfig, no_proxy: str) -> dict[str, str]:
    """Proxies are not asked for the hosts of this stack: SGLang's prefill engines register, and
    decode engines find them, by HTTP clients that do as the environment says."""
    if no_proxy.strip() == "*":
        return {}
    urls = [f"//{config.store.master_url}", *(group.url for group in config.engines)]
    hosts = [urlsplit(url).hostname or "" for url in urls]
    hosts += [config.host, config.store.host, config.router.host]
    hosts += [host for group in config.engines for host in (group.host, group.store_host)]
    names = [*no_proxy.split(","), "localhost", "127.0.0.1", "::1", *hosts]
    value = ",".join(dict.fromkeys(name.strip() for name in names if name.strip()))
    return {"NO_PROXY": value, "no_proxy": value}


def engine_flags(config: StackConfig, group: EngineGroup, ports: EnginePorts) -> Flags:
    """All SGLang flags of one engine. The group's own flags come last and win."""
    flags = _base_flags(config, group, ports)
    if group.role != "plain":
        flags |= _pd_flags(config, group, ports) | _cache_flags(config)
        if config.store.enabled:
            flags |= _store_flags(config)
        if second_path(config):
            flags["radix-cache-backend"] = "dualpath"
    if config.cpu:
        flags |= {
            "device": "cpu",
            "attention-backend": "torch_native",
            "disable-overlap-schedule": True,
        }
    return flags | {key.replace("_", "-"): value for key, value in group.flags.items()}


def engine_env(config: StackConfig, group: EngineGroup, master: str) -> dict[str, str]:
    """Environment of one engine; `master` is host:port of the store's master or empty."""
    hooks = config.hooks
    if hooks == "all" and not second_path(config):
        hooks = "reports"
    if hooks != "off" and group.role == "plain":
        hooks = "cpu"
    host = group_host(config, group)
    env = {"SGLANG_HOST_IP": host, "DUALPATH_ENGINE_HOOKS": hooks}
    if config.cpu:
        env |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": str(config.cpu_threads)}
    env |= mooncake_env(config.store.protocol, host)
    if master and group.role != "plain":
        env |= {
            "MOONCAKE_MASTER": master,
            "MOONCAKE_PROTOCOL": config.store.protocol,
            "MOONCAKE_DEVICE": config.store.device_name,
            "DUALPATH_ENGINE_PEER_PROTOCOL": config.store.protocol,
            "DUALPATH_ENGINE_PEER_DEVICE": config.store.device_name,
            "MOONCAKE_TE_META_DATA_SERVER": "P2PHANDSHAKE",
            "MOONCAKE_LOCAL_HOSTNAME": group.store_host or host,
            # Engines own no store memory: the storage node does.
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": "0",
        }
    return env | dict(group.env)


def mooncake_env(protocol: str, host: str) -> dict[str, str]:
    """What Mooncake takes from the environment alone, of a process that is reached at `host`."""
    env = {"MC_FORCE_TCP": "1"} if protocol == "tcp" else {}
    return env | ({"MC_USE_IPV6": "1"} if is_ipv6(host) else {})


def second_path(config: StackConfig) -> bool:
    """Do prefill and decode engines get the hooks and the cache class of the second path?"""
    return config.hooks == "all" and config.store.enabled


def master_flags(config: StackConfig, rpc_port: int, metrics_port: int) -> Flags:
    flags: Flags = {
        "rpc_port": rpc_port,
        "metrics_port": metrics_port,
        "rpc_address": store_host(config),
        "metrics_host": store_host(config),
        # A screenful every few seconds, which would push real messages out of the last lines.
        "enable_metric_reporting": False,
    }
    return flags | dict(config.store.master_flags)


def store_argv(config: StackConfig, programs: Programs, master: str) -> Argv:
    argv = (*programs.store, "--master", master, "--host", store_host(config))
    argv += ("--segment-bytes", str(config.store.segment_bytes))
    argv += ("--protocol", config.store.protocol)
    if config.store.device_name:
        argv += ("--device-name", config.store.device_name)
    return argv


def to_argv(flags: Mapping[str, Scalar], *, equals: bool = False) -> Argv:
    """Flags as words: True is a bare flag, False leaves it out; `equals` writes --key=value."""
    words: list[str] = []
    for key, value in flags.items():
        if equals:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--{key}={text}")
        elif value is True:
            words.append(f"--{key}")
        elif value is not False:
            words += [f"--{key}", str(value)]
    return tuple(words)


def _base_flags(config: StackConfig, group: EngineGroup, ports: EnginePorts) -> Flags:
    flags: Flags = {
        "model-path": config.model.path,
        "served-model-name": model_name(config),
        "host": group_host(config, group),
        "port": ports.http,
        # Chosen here, with all others: two engines that start together would race for one.
        "nccl-port": ports.nccl,
        "page-size": config.page_size,
        "random-seed": config.seed,
        "enable-metrics": True,
        "enable-cache-report": True,
        "incremental-streaming-output": True,
        "skip-server-warmup": True,
    }
    if config.kv_tokens:
        flags["max-total-tokens"] = config.kv_tokens
    if config.context_length:
        flags["context-length"] = config.context_length
    if config.dtype:
        flags["dtype"] = config.dtype
    return flags


def _pd_flags(config: StackConfig, group: EngineGroup, ports: EnginePorts) -> Flags:
    flags: Flags = {
        "disaggregation-mode": group.role,
        "disaggregation-transfer-backend": "mooncake",
    }
    if group.role == "prefill":
        flags["disaggregation-bootstrap-port"] = ports.bootstrap
    else:
        flags["disaggregation-decode-enable-radix-cache"] = True
    if config.store.device_name:
        flags["disaggregation-ib-device"] = config.store.device_name
    return flags


def _cache_flags(config: StackConfig) -> Flags:
    return {
        "enable-hierarchical-cache": True,
        "hicache-ratio": config.hicache_ratio,
        "hicache-io-backend": "direct",
        "hicache-mem-layout": "page_first_direct",
        "hicache-write-policy": "write_through",
    }


def _store_flags(config: StackConfig) -> Flags:
    threshold = config.store.prefetch_threshold or config.page_size
    return {
        "hicache-storage-backend": "mooncake",
        "hicache-storage-prefetch-policy": config.prefetch_policy,
        "hicache-storage-backend-extra-config": json.dumps({"prefetch_threshold": threshold}),
    }
