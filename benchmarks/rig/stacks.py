"""The stacks of a run: one store for all, engines by variant, one router per split policy. Pure.

They are started apart, so that the store survives a change of engines and the engines survive a
change of the router. The router runs on the router node, where the driver of the rig is too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import asdict

from agent_runtime.config import (
    EngineEndpoint,
    EngineGroup,
    ModelConfig,
    Role,
    RouterConfig,
    Scalar,
    StackConfig,
    StoreConfig,
)
from benchmarks.rig.arms import ENGINE_NODES, STORE, Arm, Topology, Variant
from benchmarks.rig.config import Pools, RigConfig
from benchmarks.rig.net import Command
from dualpath_sglang.contract.engine_config import EngineConfig, variable

NO_CACHE_TIERS: dict[str, Scalar] = dict.fromkeys(
    (
        "enable-hierarchical-cache",
        "hicache-ratio",
        "hicache-io-backend",
        "hicache-mem-layout",
        "hicache-write-policy",
        "hicache-storage-backend",
        "hicache-storage-prefetch-policy",
        "hicache-storage-backend-extra-config",
    ),
    False,
)
"""Leaves out what the stack gives every engine of a pair: a decode engine as upstream has it."""

LOAD_DEADLINE_S = 30.0
"""Storage NICs are a thousand times slower here than real ones, so loads take seconds."""
ENGINE_SETTINGS = {
    "staging_deadline_s": LOAD_DEADLINE_S,
    "pull_deadline_s": LOAD_DEADLINE_S,
    "lease_s": 2 * LOAD_DEADLINE_S,
    # In `decode_path` everything that is in flight is staged and pinned on D.
    "pin_fraction": 0.6,
}
"""Of `EngineConfig`, in the arms of ours."""


@dataclass(frozen=True)
class StackPlan:
    """Where things are. `words(node)`: what to put before a command so that it runs there."""

    config: RigConfig
    model: Path
    out: Path
    words: Callable[[str], Command]

    def store(self) -> StackConfig:
        """The master and one storage node, without engines."""
        return StackConfig(
            engines=(),
            start_router=False,
            start_renderer=False,
            store=StoreConfig(
                segment_bytes=self.config.segment_bytes,
                host=STORE.address("storage"),
                command_prefix=self.words("store"),
            ),
            run_dir=str(self.out / "run" / "store"),
        )

    def engines(self, variant: Variant, topology: Topology, master: str) -> StackConfig:
        """All engines of a topology; `master` is host:port of the store's master."""
        config = self.config
        ours = ENGINE_SETTINGS if variant == "second_path" else {}
        env = {variable(name): str(value) for name, value in ours.items()}
        groups = [
            self._group(name, "prefill", config.prefill_pools.shared(topology.prefill), {}, env)
            for name in topology.prefill_names
        ]
        upstream_decode = variant in ("prefill_store", "no_store")
        flags = NO_CACHE_TIERS if upstream_decode else {}
        groups += [
            self._group(name, "decode", config.decode_pools.shared(topology.decode), flags, env)
            for name in topology.decode_names
        ]
        with_store = variant != "no_store"
        return StackConfig(
            model=ModelConfig(path=str(self.model)),
            cpu=True,
            cpu_threads=config.cpu_threads,
            dtype="float32",
            page_size=config.page_size,
            prefetch_policy=config.prefetch_policy,
            hooks="all" if variant == "second_path" else "cpu",
            store=StoreConfig(enabled=with_store, segment_bytes=0, master_url=master),
            engines=tuple(groups),
            start_router=False,
            start_renderer=False,
            run_dir=str(self.out / "run" / f"{topology.key}-{variant}"),
        )

    def router(
        self, arm: Arm, engines: Sequence[EngineEndpoint], master: str, admin_url: str
    ) -> StackConfig:
        """A router alone, for engines that run. `admin_url` is the master's metrics port."""
        groups = tuple(
            EngineGroup(e.role, name=e.name, url=e.url, bootstrap_port=e.bootstrap_port)
            for e in engines
        )
        return StackConfig(
            model=ModelConfig(path=str(self.model)),
            store=StoreConfig(segment_bytes=0, master_url=master),
            engines=groups,
            start_renderer=False,
            router=RouterConfig(
                port=0,
                split_policy=arm.split,
                store_admin_url=admin_url if arm.ours else "",
                plan_deadline_s=LOAD_DEADLINE_S,
                max_inflight=self.config.inflight(sum(e.role == "prefill" for e in engines)),
                turn_deadline_s=self.config.turn_timeout_s,
            ),
            run_dir=str(self.out / "run" / f"router-{arm.split}"),
        )

    def _group(
        self,
        name: str,
        role: Role,
        pools: Pools,
        flags: dict[str, Scalar],
        env: dict[str, str],
    ) -> EngineGroup:
        node = ENGINE_NODES[name]
        own: dict[str, Scalar] = {"max-total-tokens": pools.tokens, "hicache-ratio": pools.ratio}
        return EngineGroup(
            role,
            name=name,
            host=node.address("compute"),
            store_host=node.address("storage"),
            command_prefix=self.words(name),
            flags=own | flags,
            env=env,
        )


def settings() -> dict[str, dict[str, float]]:
    """What the arms of ours are set to (`rig`) that has another `default`; seconds and shares."""
    here = ENGINE_SETTINGS | {"plan_deadline_s": LOAD_DEADLINE_S}
    defaults = asdict(RouterConfig()) | asdict(EngineConfig())
    return {name: {"rig": value, "default": defaults[name]} for name, value in here.items()}


def shown_flags(command: Sequence[str]) -> dict[str, str]:
    """An engine's flags that make a difference to what it does: no addresses and no ports."""
    places = ("host", "port", "nccl-port", "disaggregation-bootstrap-port")
    found: dict[str, str] = {}
    words = [*command, "--"]
    for word, after in itertools.pairwise(words):
        name = word.removeprefix("--")
        if word.startswith("--") and name and name not in places and "=" not in name:
            found[name] = "" if after.startswith("--") else after
    return found
