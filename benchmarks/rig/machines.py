"""What runs in the lab now: the store, one set of engines, a router per split policy.

Started when first asked for and kept as long as they fit; a change of engines stops the old ones
first, because the machine has no room for two sets.
"""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable

from agent_runtime.config import StackConfig
from agent_runtime.stack.stack import RunningStack, Stack
from agent_runtime.stack.status import Event
from benchmarks.rig.arms import Arm, Topology, Variant
from benchmarks.rig.counters import EngineCounts, cpu_seconds, engine_counts
from benchmarks.rig.stacks import StackPlan

Show = Callable[[str], None]
QUIET_S, QUIET_TIMEOUT_S = 2.0, 120.0


class Machines:
    """Use as a context manager: leaving it stops everything."""

    def __init__(self, plan: StackPlan, show: Show) -> None:
        self._plan = plan
        self._show = show
        self._all = contextlib.ExitStack()
        self._engine_scope = contextlib.ExitStack()
        self._store: RunningStack | None = None
        self._engines: RunningStack | None = None
        self._engines_are: tuple[str, Variant] | None = None
        self._routers: dict[str, RunningStack] = {}

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._engine_scope.close()
        finally:
            self._all.close()

    @property
    def store(self) -> RunningStack:
        if self._store is None:
            self._store = self._all.enter_context(self._start(self._plan.store(), "the store"))
        return self._store

    @property
    def master(self) -> str:
        """host:port of the store's master."""
        return self.store.url("master")

    @property
    def store_admin_url(self) -> str:
        """The master's metrics port, which also answers what exists."""
        component = self.store.component("master").component
        host = component.url.rpartition(":")[0]
        return f"http://{host}:{component.ports['metrics']}"

    def engines(self, topology: Topology, variant: Variant) -> RunningStack:
        """Running engines of this kind. Raises StartupError."""
        if self._engines is not None and self._engines_are == (topology.key, variant):
            return self._engines
        self.stop_engines()
        config = self._plan.engines(variant, topology, self.master)
        what = f"engines {topology.key} {variant}"
        self._engines = self._engine_scope.enter_context(self._start(config, what))
        self._engines_are = (topology.key, variant)
        return self._engines

    def stop_engines(self) -> None:
        """The routers too: they belong to these engines."""
        self._engine_scope.close()
        self._engines = self._engines_are = None
        self._routers = {}

    def router(self, arm: Arm) -> RunningStack:
        """A router for the running engines with the arm's policy; the others stay up."""
        assert self._engines is not None
        if arm.split not in self._routers:
            admin = self.store_admin_url
            config = self._plan.router(arm, self._engines.engines, self.master, admin)
            stack = self._start(config, f"router, split policy {arm.split}")
            self._routers[arm.split] = self._engine_scope.enter_context(stack)
        return self._routers[arm.split]

    def counts(self) -> dict[str, EngineCounts]:
        """By engine."""
        assert self._engines is not None
        return {engine.name: engine_counts(engine.url) for engine in self._engines.engines}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of every process of ours so far, by component."""
        stacks = [self._store, self._engines, *self._routers.values()]
        used: dict[str, float] = {}
        for stack in stacks:
            for component in stack.layout.components if stack else ():
                if not component.external:
                    pid = stack.component(component.name).pid if stack else None
                    used[component.name] = used.get(component.name, 0.0) + cpu_seconds(pid)
        return used

    def wait_until_stored(self) -> int:
        """Wait until no more objects arrive in the store; how many there are."""
        last, quiet_since = -1, time.monotonic()
        deadline = quiet_since + QUIET_TIMEOUT_S
        while time.monotonic() < deadline:
            count = self._object_count()
            if count != last:
                last, quiet_since = count, time.monotonic()
            elif time.monotonic() - quiet_since >= QUIET_S:
                break
            time.sleep(0.25)
        return last

    def _object_count(self) -> int:
        with urllib.request.urlopen(f"{self.store_admin_url}/metrics", timeout=30) as reply:
            return object_count(reply.read().decode())

    def _start(self, config: StackConfig, what: str) -> RunningStack:
        self._show(f"starting {what}")
        stack = Stack(config, on_event=self._event).start()
        self._show(f"{what} up after {stack.started_in_s or 0.0:.0f} s")
        return stack

    def _event(self, event: Event) -> None:
        if event.component and event.state in ("failed", "exited", "restarting"):
            self._show(f"{event.component} {event.state}: {event.detail}")


def object_count(metrics: str) -> int:
    """Objects that the master knows, from its /metrics (0: it says nothing of them)."""
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0] == "master_key_count":
            return int(float(value))
    return 0
