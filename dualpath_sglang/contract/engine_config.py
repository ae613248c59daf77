"""Settings of the plugin inside one engine, read from `DUALPATH_ENGINE_*` and from nowhere else.

The environment is the one carrier that reaches every process of an engine. A name that is not
listed here, a value of the wrong type or out of range is a ConfigError that says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.kinds import Port, about, in_words

PREFIX = "DUALPATH_ENGINE_"
Deadline = Annotated[float, Meta(gt=0, le=600)]
Rate = Annotated[float, Meta(ge=0, le=1e15)]
"""Bytes per second."""


def variable(name: str) -> str:
    """The environment variable of the field `name`."""
    return PREFIX + name.upper()


class EngineConfig(Struct, frozen=True):
    """One engine's settings; the field `pin_fraction` is `DUALPATH_ENGINE_PIN_FRACTION`."""

    hooks: Annotated[
        Literal["off", "cpu", "reports", "all"],
        about(
            "off, cpu (CPU support only), reports (each engine's own account of a request too) or "
            "all (the second path too)"
        ),
    ] = "cpu"
    export_host: Annotated[
        str,
        about(
            "where a decode engine's export server listens and is reached (empty: SGLang's own "
            "address of this machine)"
        ),
    ] = ""
    export_port: Annotated[Port, about("port of the export server (0: any)")] = 0
    staging_deadline_s: Annotated[
        Deadline,
        about(
            "a decode engine's read of [0, k) is over after so long without a page; waiting behind "
            "others that progress does not count, the plan's own deadline does"
        ),
    ] = 10.0
    pull_deadline_s: Annotated[
        Deadline, about("as staging_deadline_s, for a prefill engine's read of [0, n)")
    ] = 10.0
    lease_s: Annotated[
        float,
        Meta(gt=0, le=3600),
        about("how long pages stay for a prefill engine that says nothing, in seconds"),
    ] = 30.0
    pin_fraction: Annotated[
        float,
        Meta(ge=0, le=1),
        about("most of the host pool that a decode engine stages and pins (0 to 1)"),
    ] = 0.25
    verify_pages: Annotated[
        bool,
        about(
            "compare checksums of pulled pages (4 us of each side's CPU for 64 KiB: 80 to 300 "
            "Gbit/s of one thread, `benchmarks/verify_pages.py`)"
        ),
    ] = True
    store_bytes_per_s: Annotated[Rate, about("limit of reads from the store (0: none)")] = 0.0
    peer_bytes_per_s: Annotated[Rate, about("limit of pulls from other engines (0: none)")] = 0.0
    peer_protocol: Annotated[
        Literal["tcp", "rdma"], about("how bytes travel from decode to prefill engines")
    ] = "tcp"
    peer_device: Annotated[str, about("RDMA device for pulls (empty: Mooncake chooses)")] = ""
    check: Annotated[
        Literal["off", "idle", "always"],
        about(
            "compare the pool's books when idle (idle: at most once a second; always: 20 times a "
            "second, and a difference ends the engine); lost pages are seen with "
            "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=python only: the default core cannot be walked"
        ),
    ] = "idle"
    fault: Annotated[str, about("faults to inject, for tests")] = ""

    @property
    def second_path(self) -> bool:
        return self.hooks == "all"

    @property
    def reports(self) -> bool:
        return self.hooks in ("reports", "all")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EngineConfig:
        """Raises ConfigError for an unknown name or a bad value; other variables are not read."""
        kinds = {variable(f.name): (f.name, f.type) for f in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            if name not in kinds:
                raise ConfigError(
                    f"{name} is no setting of an engine; there are {', '.join(sorted(kinds))}",
                    field=name,
                )
            field, kind = kinds[name]
            try:
                values[field] = msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError as error:
                message = f"{name} is {text!r}, expected {in_words(kind)}"
                raise ConfigError(message, field=name) from error
        return cls(**values)
