"""The planning step of one turn: what the store holds of it, where it goes, the message to both.

The store is a stub that has everything and answers at once: what is timed is the router's own work.
All pages of the history were seen a moment ago, as in a session whose turns come quickly.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from agent_runtime.planning.planner import Planner
from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.placement import Placed, Policy
from agent_runtime.scheduling.view import TurnView
from agent_runtime.trajectory.model import SessionHead
from agent_runtime.trajectory.session import Session
from benchmarks.scheduler.engines import KV_BYTES, Engines
from benchmarks.scheduler.load import APPEND, OUTPUT, PAGE
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.engine_report import decode_report
from dualpath_sglang.contract.ids import EngineId, RequestId, SessionId
from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.contract.plan import to_kv_hints

CONTEXTS = (1_000, 10_000, 100_000)
PREFILL, DECODE = 16, 32
LAYOUT = KeyLayout("model_", ("_0_k", "_0_v"), PAGE, 1)


class FullStore:
    """A stub: every object is there."""

    async def exist(self, keys: Sequence[str]) -> list[bool]:
        return [True] * len(keys)


@dataclass(frozen=True)
class Turn:
    """The next turn of a session of `context` tokens."""

    session: Session
    context: int
    prompt: array[int]


class PlanningStep:
    def __init__(self, policy: Policy) -> None:
        rng = random.Random(1)
        engines = Engines(PREFILL, DECODE, rng)
        self._fleet = Fleet([engine.facts() for engine in engines.all])
        infos: dict[EngineId, EngineInfo | None] = {}
        for engine in engines.all:
            self._fleet.set_plans(engine.rank, True, KV_BYTES)
            self._fleet.set_up(engine.rank, True)
            self._fleet.report(engine.rank, decode_report(engine.report()), 0.0)
            exports = ("10.0.0.1:1",) if engine.role == "decode" else ()
            infos[engine.rank.engine] = EngineInfo(
                engine.role, "", PAGE, KV_BYTES, "f", "n", exports, (), LAYOUT
            )
        self._policy, self._rng = policy, rng
        self._planner = Planner(
            lambda: infos,
            FullStore(),
            clock=ManualClock(),
            rng=rng,
            known_ttl_s=3.0,
            timeout_s=1.0,
            deadline_s=10.0,
        )

    async def seconds(self, turn: Turn) -> float:
        """Of this thread on its core."""
        start = time.thread_time()
        cached = await self._planner.look_up(turn.session, turn.context, turn.prompt)
        view = TurnView(
            RequestId("0" * 32),
            len(turn.prompt),
            len(turn.prompt) - turn.context,
            0.0,
            cached.pages,
            cached.page_size,
            output_tokens=OUTPUT,
        )
        fleet = self._fleet.view(max_inflight=1000, split_policy="auto")
        (placed,) = self._policy(fleet, [view], 0.0, self._rng)
        assert isinstance(placed, Placed)
        plan = self._planner.plan(placed, cached)
        assert plan is not None
        assert plan.n == (len(turn.prompt) - 1) // PAGE
        to_kv_hints(plan)
        return time.thread_time() - start


def new_turn(context: int) -> Turn:
    session = Session(SessionHead(SessionId("s"), 0.0, {}))
    session.tokens.extend(range(context))
    return Turn(session, context, session.tokens + array("I", range(APPEND)))


def planning_us(policy: Policy, repeat: int) -> dict[int, float]:
    """Median microseconds of one planning step by tokens of context; the contexts take turns."""

    async def measure() -> dict[int, float]:
        step = PlanningStep(policy)
        turns = [new_turn(context) for context in CONTEXTS]
        for turn in turns:
            await step.seconds(turn)  # every page is asked for once
        taken: dict[int, list[float]] = {context: [] for context in CONTEXTS}
        for _ in range(repeat):
            for turn in turns:
                taken[turn.context].append(await step.seconds(turn))
        return {context: median(times) * 1e6 for context, times in taken.items()}

    return asyncio.run(measure())
