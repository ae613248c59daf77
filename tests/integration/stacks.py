"""Stacks that the integration tests start: real engines, store, renderer and router."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent_runtime.config import (
    EngineGroup,
    ExitPolicies,
    ModelConfig,
    RouterConfig,
    StackConfig,
    StoreConfig,
)
from agent_runtime.stack.stack import RunningStack, Stack


def pair_config(model: Path, run_dir: Path, **changes: Any) -> StackConfig:
    """One prefill and one decode engine; what ends comes back, but for store and master."""
    policies = ExitPolicies(store="keep", engines="restart", renderer="restart", router="restart")
    config = StackConfig(
        model=ModelConfig(path=str(model)),
        cpu=True,
        dtype="float32",
        router=RouterConfig(port=0, turn_deadline_s=60.0),
        on_child_exit=policies,
        max_restarts=20,
        run_dir=str(run_dir),
    )
    return msgspec.structs.replace(config, **changes)


@contextlib.contextmanager
def plain_engine(model: Path, run_dir: Path) -> Iterator[str]:
    """The URL of one ordinary engine that computes every prompt from its first token."""
    config = StackConfig(
        model=ModelConfig(path=str(model)),
        cpu=True,
        dtype="float32",
        store=StoreConfig(enabled=False),
        engines=(EngineGroup(role="plain", name="reference", flags={"disable-radix-cache": True}),),
        start_router=False,
        start_renderer=False,
        run_dir=str(run_dir),
    )
    with Stack(config).start() as stack:
        yield stack.url("reference")


def restart_cold(stack: RunningStack) -> None:
    """Kill all engines at once and wait until the supervisor has brought them back."""
    names = [engine.name for engine in stack.engines]
    before = {name: stack.component(name).restarts for name in names}
    for name in names:
        stack.kill(name)
    for name in names:
        stack.wait_for(name, "ready", 180.0, restarts=before[name] + 1)
