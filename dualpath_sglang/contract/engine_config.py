"""Settings of the plugin inside one engine, read from `DUALPATH_ENGINE_*` and from nowhere else.

The environment is the one carrier that reaches every process of an engine. A name that is not
listed here, a value of the wrong type or out of range is a ConfigError that says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dualpath_sglang.contract.errors import ConfigError

PREFIX = "DUALPATH_ENGINE_"


def variable(name: str) -> str:
    """The environment variable of the field `name`."""
    return PREFIX + name.upper()


def _setting(default: Any, help: str) -> Any:
    """A field with the one text about it that users see (`dualpath config-docs`)."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EngineConfig:
    """One engine's settings; the field `pin_fraction` is `DUALPATH_ENGINE_PIN_FRACTION`."""

    hooks: Literal["off", "cpu", "reports", "all"] = _setting(
        "cpu",
        "off, cpu (CPU support only), reports (each engine's own account of a request too) or all "
        "(the second path too)",
    )
    export_host: str = _setting(
        "",
        "where a decode engine's export server listens and is reached (empty: SGLang's own address "
        "of this machine)",
    )
    export_port: int = _setting(0, "port of the export server (0: any)")
    staging_deadline_s: float = _setting(
        10.0,
        "a decode engine's read of [0, k) is over after so long without a page; waiting behind "
        "others that progress does not count, the plan's own deadline does",
    )
    pull_deadline_s: float = _setting(
        10.0, "as staging_deadline_s, for a prefill engine's read of [0, n)"
    )
    lease_s: float = _setting(
        30.0, "how long pages stay for a prefill engine that says nothing, in seconds"
    )
    pin_fraction: float = _setting(
        0.25, "most of the host pool that a decode engine stages and pins (0 to 1)"
    )
    verify_pages: bool = _setting(
        True,
        "compare checksums of pulled pages (4 us of each side's CPU for 64 KiB: 80 to 300 Gbit/s "
        "of one thread, `benchmarks/verify_pages.py`)",
    )
    store_bytes_per_s: float = _setting(0.0, "limit of reads from the store (0: none)")
    peer_bytes_per_s: float = _setting(0.0, "limit of pulls from other engines (0: none)")
    peer_protocol: Literal["tcp", "rdma"] = _setting(
        "tcp", "how bytes travel from decode to prefill engines"
    )
    peer_device: str = _setting("", "RDMA device for pulls (empty: Mooncake chooses)")
    check: Literal["off", "idle", "always"] = _setting(
        "idle",
        "compare the pool's books when idle (idle: at most once a second; always: 20 times a "
        "second, and a difference ends the engine); lost pages are seen with "
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=python only: the default core cannot be walked",
    )
    fault: str = _setting("", "faults to inject, for tests")

    @property
    def second_path(self) -> bool:
        return self.hooks == "all"

    @property
    def reports(self) -> bool:
        return self.hooks in ("reports", "all")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EngineConfig:
        """Raises ConfigError for an unknown name or a bad value; other variables are not read."""
        hints = get_type_hints(cls)
        known = {variable(f.name): f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                raise ConfigError(
                    f"{name} is no setting of an engine; there are {', '.join(sorted(known))}",
                    field=name,
                )
            values[known[name]] = _parsed(name, text, hints[known[name]])
        config = cls(**values)
        _check_ranges(config)
        return config


def _parsed(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{name} is {text!r}, not one of {get_args(kind)}", field=name)
        return text
    if kind is bool:
        if text not in ("0", "1", "true", "false"):
            raise ConfigError(f"{name} is {text!r}, not 0, 1, true or false", field=name)
        return text in ("1", "true")
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}, not a number", field=name) from error


def _check_ranges(config: EngineConfig) -> None:
    legal = {
        "export_port": 0 <= config.export_port < 2**16,
        "staging_deadline_s": 0 < config.staging_deadline_s <= 600,
        "pull_deadline_s": 0 < config.pull_deadline_s <= 600,
        "lease_s": 0 < config.lease_s <= 3600,
        "pin_fraction": 0 <= config.pin_fraction <= 1,
        "store_bytes_per_s": 0 <= config.store_bytes_per_s < float("inf"),
        "peer_bytes_per_s": 0 <= config.peer_bytes_per_s < float("inf"),
    }
    for setting, fits in legal.items():
        if not fits:
            name = variable(setting)
            raise ConfigError(f"{name} is {getattr(config, setting)}: out of range", field=name)
