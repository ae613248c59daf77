"""A cluster that serves agents: networks, engines and router wired together.

agent ── arrives ──▶ router ── placed ──▶ prefill group ── handed over ──▶ decode group ─┐
  ▲                                                                                      │
  └─────────────────────── finished: the next turn, after its gap ◀──────────────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.sim.constants import Constants
from benchmarks.sim.cost import DecodeCost, PrefillCost, kv_room
from benchmarks.sim.decode import DecodeGroup
from benchmarks.sim.exact_fabric import ExactFabric
from benchmarks.sim.fabric import Fabric, SharedFabric
from benchmarks.sim.loop import Loop, Phase
from benchmarks.sim.memory import Room
from benchmarks.sim.meter import Meter
from benchmarks.sim.models import Model
from benchmarks.sim.prefill import PrefillGroup
from benchmarks.sim.routers import ByTokens, RoundRobin, Router
from benchmarks.sim.systems import System
from benchmarks.sim.trajectories import Trajectories
from benchmarks.sim.turn import Turn
from dualpath_sglang.contract.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """What is simulated. Raises ConfigError for what cannot be."""

    model: Model
    system: System
    prefill_nodes: int
    decode_nodes: int
    constants: Constants = field(default_factory=Constants)
    links: Literal["shared", "exact"] = "shared"
    window_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("prefill_nodes", "decode_nodes", "window_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}", field=name)
        for name, gpus in (("prefill", self.prefill_group), ("decode", self.decode_group)):
            if kv_room(self.model, self.constants, gpus) <= 0:
                raise ConfigError(
                    f"{self.model.name}: its weights leave no HBM for KV on a {name} group of "
                    f"{gpus} GPUs; give it more nodes or GPUs with more memory",
                    field=f"{name}_nodes",
                )

    @property
    def prefill_group(self) -> int:
        """GPUs that run their forwards together."""
        return self._group(self.model.ep_nodes_prefill, self.prefill_nodes)

    @property
    def decode_group(self) -> int:
        return self._group(self.model.ep_nodes_decode, self.decode_nodes)

    def _group(self, ep_nodes: int, nodes: int) -> int:
        return max(1, min(ep_nodes, nodes) * int(self.constants.gpus_per_node))


class Cluster:
    """agents: which trajectory each agent replays. Nothing happens before `start`."""

    def __init__(self, setting: Setting, trajectories: Trajectories, agents: Sequence[int]) -> None:
        check(setting.model, trajectories)
        constants, model, system = setting.constants, setting.model, setting.system
        g = int(constants.gpus_per_node)
        nodes = setting.prefill_nodes + setting.decode_nodes
        self.setting, self.trajectories, self.agents = setting, trajectories, agents
        self.loop = Loop()
        made = ExactFabric if setting.links == "exact" else SharedFabric
        self.fabric: Fabric = made(self.loop, nodes, constants)
        self.meter = Meter(self.fabric, setting.window_s)
        room = int(constants.dram_buffer_bytes / model.token_bytes)
        self.buffers = [Room(room) for _ in range(nodes)] if system.buffered else None
        prefill_gpus = setting.prefill_nodes * g
        self.prefill = [
            self._prefill_group(gpus) for gpus in _groups(0, prefill_gpus, setting.prefill_group)
        ]
        self.decode = [
            self._decode_group(gpus)
            for gpus in _groups(prefill_gpus, nodes * g, setting.decode_group)
        ]
        self._prefill_of = {gpu: group for group in self.prefill for gpu in group.gpus}
        self._decode_of = {gpu: group for group in self.decode for gpu in group.gpus}
        self.router = self._router(prefill_gpus, nodes * g - prefill_gpus)
        self.turns = [Turn(agent) for agent in range(len(agents))]
        self.agents_left = len(agents)
        self._token_bytes, self._page = model.token_bytes, trajectories.page
        self._fetch_s = 0.0 if system.on_arrival else constants.fetch_s
        self._asked = False
        self._placed = 0

    def _prefill_group(self, gpus: range) -> PrefillGroup:
        setting = self.setting
        return PrefillGroup(
            self.loop,
            self.fabric,
            PrefillCost(setting.model, setting.constants, len(gpus)),
            setting.system,
            setting.model,
            setting.constants,
            gpus,
            kv_room(setting.model, setting.constants, len(gpus)),
            self.buffers,
            loaded=self._loaded,
            computed=self._computed,
            handed_over=self._handed_over,
        )

    def _decode_group(self, gpus: range) -> DecodeGroup:
        setting = self.setting
        return DecodeGroup(
            self.loop,
            self.fabric,
            DecodeCost(setting.model, setting.constants, len(gpus)),
            gpus,
            kv_room(setting.model, setting.constants, len(gpus)),
            setting.model.token_bytes,
            setting.system.local,
            joined=self._joined,
            finished=self._finished,
        )

    def _router(self, prefill_gpus: int, decode_gpus: int) -> Router:
        constants, system = self.setting.constants, self.setting.system
        if system.placement == "round_robin":
            return RoundRobin(prefill_gpus, decode_gpus, system.path)
        alpha = constants.alpha_s * constants.snic_bytes_per_s / self.setting.model.token_bytes
        beta = constants.beta_s * constants.prompt_tokens_per_s
        return ByTokens(prefill_gpus, decode_gpus, int(constants.gpus_per_node), alpha, beta)

    def start(self, arrivals: Sequence[float] | None = None) -> None:
        """Agents begin at `arrivals`; without, all at once."""
        for agent, turn in enumerate(self.turns):
            turn.index = self.trajectories.first[self.agents[agent]]
            time = arrivals[agent] if arrivals else 0.0
            self.loop.at(time, Phase.ARRIVAL, self._arrive, turn)
        self.loop.at(self.meter.window_s, Phase.OBSERVE, self._observe)

    def _observe(self, now: float, _: Any) -> None:
        self.meter.end_window(now)
        if self.agents_left:
            self.loop.at(now + self.meter.window_s, Phase.OBSERVE, self._observe)

    def _arrive(self, now: float, turn: Turn) -> None:
        lists, i = self.trajectories, turn.index
        turn.begin(now, lists.hit[i], lists.new[i], lists.out[i])
        self.router.arrive(now, turn)
        self._ask(now)

    def _ask(self, now: float) -> None:
        """A pass, when everything else at its time has happened: now, or when engines fetch."""
        if not self._asked:
            self._asked = True
            period = self._fetch_s
            time = -(-now // period) * period if period else now
            self.loop.at(max(now, time), Phase.PLACE, self._place)

    def _place(self, now: float, _: Any) -> None:
        self._asked = False
        for turn in self.router.place(now):
            turn.placed = now
            turn.order = self._placed
            self._placed += 1
            self._prefill_of[turn.prefill].place(now, turn)
        if self.router.waiting and self._fetch_s:
            self._asked = True
            self.loop.at(now + self._fetch_s, Phase.PLACE, self._place)

    def _loaded(self, now: float, turn: Turn) -> None:
        self.router.loaded(now, turn)

    def _computed(self, now: float, turn: Turn) -> None:
        self.meter.first_token(now, turn)
        self.router.computed(now, turn)
        if self.router.waiting:
            self._ask(now)

    def _handed_over(self, now: float, turn: Turn) -> None:
        if turn.out > 1:
            self._decode_of[turn.decode].accept(now, turn)
        else:
            self._left_dram(now, turn)
            self._finished(now, turn)

    def _joined(self, now: float, turn: Turn) -> None:
        if turn.second == 0.0:
            turn.second = now + self._decode_of[turn.decode].step_s
            self._left_dram(now, turn)

    def _left_dram(self, now: float, turn: Turn) -> None:
        if self.buffers is not None:
            self.buffers[turn.decode // self.fabric.gpus_per_node].give(now, turn.hit + turn.new)

    def _finished(self, now: float, turn: Turn) -> None:
        self.meter.finished(now, turn)
        self.router.finished(now, turn)
        stored = (turn.hit + turn.new + turn.wanted) // self._page * self._page - turn.hit
        if stored > 0:
            self.fabric.save(now, turn.decode, stored * self._token_bytes)
        lists = self.trajectories
        turn.index += 1
        if turn.index < lists.end[self.agents[turn.agent]]:
            self.loop.at(now + lists.gap[turn.index], Phase.ARRIVAL, self._arrive, turn)
        else:
            self.agents_left -= 1
            self.meter.jct.append(now)
        if self.router.waiting:
            self._ask(now)


def check(model: Model, trajectories: Trajectories) -> None:
    """Raises ConfigError for a turn that the model cannot hold."""
    lists = trajectories
    for t in range(len(lists)):
        for i in range(lists.first[t], lists.end[t]):
            tokens = lists.hit[i] + lists.new[i] + lists.out[i]
            if tokens > model.max_context:
                raise ConfigError(
                    f"trajectory {t}, turn {i - lists.first[t]}: {tokens} tokens, more than the "
                    f"{model.max_context} of {model.name}'s context",
                    field="trace",
                )


def _groups(start: int, end: int, size: int) -> list[range]:
    return [range(first, min(first + size, end)) for first in range(start, end, size)]
