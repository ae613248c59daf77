"""What runs in the lab now: the store, sets of engines, a router per split policy.

Started when first asked for and kept as long as they fit. Unless two sets are wanted beside each
other, a change of engines stops the old ones first.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable

from agent_runtime.config import StackConfig
from agent_runtime.stack.commands import PY, Programs
from agent_runtime.stack.stack import RunningStack, Stack
from agent_runtime.stack.status import Event
from benchmarks.rig.arms import Arm, Topology, Variant
from benchmarks.rig.counters import EngineCounts, cpu_seconds, engine_counts
from benchmarks.rig.stacks import StackPlan
from dualpath_sglang.contract.addresses import http_url, split_host_port
from dualpath_sglang.contract.errors import StartupError

Show = Callable[[str], None]
Starter = Callable[[StackConfig, str], RunningStack]
QUIET_S, QUIET_TIMEOUT_S = 2.0, 120.0
METRICS_TIMEOUT_S = 30.0
PROGRAMS = Programs(engine=(PY, "-m", "benchmarks.rig.engine"))
ENGINES_TIMEOUT_S = 60.0


class EngineSet:
    """Running engines of one variant, and the routers in front of them."""

    def __init__(
        self, stack: RunningStack, plan: StackPlan, master: str, admin_url: str, start: Starter
    ) -> None:
        self.stack = stack
        self._plan = plan
        self._master = master
        self._admin_url = admin_url
        self._start = start
        self._scope = contextlib.ExitStack()
        self._scope.enter_context(stack)
        self._routers: dict[str, RunningStack] = {}

    def url(self, arm: Arm) -> str:
        """Of a router with the arm's policy; the others stay up."""
        if arm.split not in self._routers:
            engines = self.stack.engines
            config = self._plan.router(arm, engines, self._master, self._admin_url)
            stack = self._start(config, f"router of {engines[0].name}, split policy {arm.split}")
            self._routers[arm.split] = self._scope.enter_context(stack)
            wait_for_engines(stack.router_url, plans=arm.ours)
        return self._routers[arm.split].router_url

    def counts(self) -> dict[str, EngineCounts]:
        """By engine. Raises OSError."""
        return {engine.name: engine_counts(engine.url) for engine in self.stack.engines}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by component."""
        used: dict[str, float] = {}
        for stack in (self.stack, *self._routers.values()):
            for name, seconds in stack_cpu_s(stack).items():
                used[name] = used.get(name, 0.0) + seconds
        return used

    def close(self) -> None:
        """Routers first: without engines they would only complain."""
        self._scope.close()


class Machines:
    """Use as a context manager: leaving it stops everything."""

    def __init__(self, plan: StackPlan, show: Show) -> None:
        self._plan = plan
        self._show = show
        self._store: RunningStack | None = None
        self._sets: dict[tuple[str, Variant], EngineSet] = {}

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.stop_engines()
        finally:
            if self._store is not None:
                self._store.stop()

    @property
    def store(self) -> RunningStack:
        if self._store is None:
            self._store = self._start(self._plan.store(), "store")
        return self._store

    @property
    def store_admin_url(self) -> str:
        """The master's metrics port, which also answers what exists."""
        component = self.store.component("master").component
        host, _ = split_host_port(component.url)
        return http_url(host, component.ports["metrics"])

    def engines(self, topology: Topology, variant: Variant, *, beside: bool = False) -> EngineSet:
        """Running engines of this kind. Raises StartupError.

        `beside`: other sets stay up; they must be on other nodes.
        """
        key = (topology.key, variant)
        if key in self._sets:
            return self._sets[key]
        if not beside:
            self.stop_engines()
        master = self.store.url("master")
        config = self._plan.engines(variant, topology, master)
        stack = self._start(config, f"engines {topology.key} {variant}")
        made = EngineSet(stack, self._plan, master, self.store_admin_url, self._start)
        self._sets[key] = made
        return made

    def stop_engines(self) -> None:
        with contextlib.ExitStack() as scope:
            for engine_set in self._sets.values():
                scope.callback(engine_set.close)
            self._sets = {}

    def store_cpu_s(self) -> dict[str, float]:
        return stack_cpu_s(self.store)

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
        url = f"{self.store_admin_url}/metrics"
        with urllib.request.urlopen(url, timeout=METRICS_TIMEOUT_S) as reply:
            return object_count(reply.read().decode())

    def _start(self, config: StackConfig, what: str) -> RunningStack:
        stack = Stack(config, on_event=self._event, programs=PROGRAMS).start()
        self._show(f"{what} up after {stack.started_in_s or 0.0:.0f} s")
        return stack

    def _event(self, event: Event) -> None:
        if event.component and event.state in ("failed", "exited", "restarting"):
            self._show(f"{event.component} {event.state}: {event.detail}")


def wait_for_engines(router_url: str, *, plans: bool) -> None:
    """Until the router finds every engine healthy and, for `plans`, knows what each publishes.
    Raises StartupError."""
    deadline = time.monotonic() + ENGINES_TIMEOUT_S
    while True:
        url = f"{router_url}/admin/engines"
        with urllib.request.urlopen(url, timeout=METRICS_TIMEOUT_S) as reply:
            engines = json.loads(reply.read())["engines"]
        waiting = [e["name"] for e in engines if not e["healthy"] or (plans and not e["info"])]
        if not waiting:
            return
        if time.monotonic() > deadline:
            what = "publishes what plans need" if plans else "is healthy"
            raise StartupError(f"the router does not see that {', '.join(waiting)} {what}")
        time.sleep(0.2)


def stack_cpu_s(stack: RunningStack) -> dict[str, float]:
    """CPU seconds so far of a stack's own components and everything below them."""
    return {
        component.name: cpu_seconds(stack.component(component.name).pid)
        for component in stack.layout.components
        if not component.external
    }


def object_count(metrics: str) -> int:
    """Objects that the master knows, from its /metrics (0: it says nothing of them)."""
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0] == "master_key_count":
            return int(float(value))
    return 0
