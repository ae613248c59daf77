"""The only writer of the router's live state: who is healthy, who is busy, who waits.

    something changed ─▶ view ─▶ schedule (pure) ─▶ apply each decision

Every change (a turn arrives or ends, an engine comes or goes) starts a pass. Nothing here awaits
between reading the state and writing it, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from agent_runtime.config import EngineEndpoint, Role, RouterConfig
from agent_runtime.dispatch.past import Past
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.pairing import lacking
from agent_runtime.scheduling.passes import advance
from agent_runtime.scheduling.placement import Decision, Placed, Policy, Refused, ranks_of
from agent_runtime.scheduling.view import START, ClusterView, EngineFacts, Rank, TurnView
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.engine_report import EngineReport
from dualpath_sglang.contract.errors import Internal, Saturated
from dualpath_sglang.contract.ids import EngineId, RequestId

log = logging.getLogger("dualpath.placement")

NO_ENGINE_RETRY_S = 5.0
PASS_TURNS = 32
"""Waiting turns that one call of the policy looks at: a pass must not take longer, the longer the
queue is."""


@dataclass
class EngineState:
    """What is known of an engine beside its load, which is the fleet's.

    context_length, info: as the engine says since it came up, if it has (`learned`).
    """

    endpoint: EngineEndpoint
    healthy: bool = False
    detail: str = "not checked yet"
    context_length: int | None = None
    info: EngineInfo | None = None
    learned: bool = False


@dataclass
class _Waiting:
    turn: TurnView
    placed: asyncio.Future[Placed] = field(repr=False)


class PlacementLoop:
    def __init__(
        self,
        fleet: Mapping[EngineId, EngineEndpoint],
        config: RouterConfig,
        policy: Policy,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.engines = {name: EngineState(endpoint) for name, endpoint in fleet.items()}
        self.policy_failures = 0
        ranks = [EngineFacts(Rank(name), endpoint.role) for name, endpoint in fleet.items()]
        self.past = Past(facts.rank for facts in ranks)
        self._fleet = Fleet(ranks)
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._config = config
        self._waiting: dict[RequestId, _Waiting] = {}
        self._cursor = START
        self._infos: Mapping[EngineId, EngineInfo | None] | None = None

    @property
    def inflight(self) -> int:
        return self._fleet.inflight

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def turns_on(self, name: EngineId) -> int:
        """Turns that are placed on the engine and have not ended."""
        return self._fleet.turns_on(Rank(name))

    def reading_tokens(self, name: EngineId) -> int:
        """What it has still to read from the store."""
        return self._fleet.reading_tokens(Rank(name))

    async def place(self, turn: TurnView) -> Placed:
        """Waits for a placement; the caller must `release` it. Raises Saturated.

        A cancelled wait leaves the queue, also when the placement has just been made.
        """
        future: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._waiting[turn.id] = _Waiting(turn, future)
        self._pass()
        if not future.done() and len(self._waiting) > self._config.max_waiting:
            del self._waiting[turn.id]
            raise Saturated(
                f"{self.inflight} turns are in flight and {self.waiting} wait, the limits are "
                f"max_inflight={self._config.max_inflight} and "
                f"max_waiting={self._config.max_waiting}"
            )
        # Nobody may report health meanwhile: there is no engine, or every check hangs.
        wait_s = self._config.no_engine_wait_s
        timer = asyncio.get_running_loop().call_later(wait_s, self._pass)
        try:
            return await future
        except asyncio.CancelledError:
            self._waiting.pop(turn.id, None)
            self.release(turn.id)
            raise
        finally:
            timer.cancel()

    def infos(self) -> Mapping[EngineId, EngineInfo | None]:
        """What the healthy engines publish of themselves; another object when that has changed."""
        if self._infos is None:
            up = [(name, state) for name, state in self.engines.items() if state.healthy]
            self._infos = {name: state.info for name, state in up}
        return self._infos

    def loaded(self, request_id: RequestId) -> None:
        """The turn's cached prefix is in place: its first token is here. Twice does no harm."""
        self._fleet.loaded(request_id)

    def release(self, request_id: RequestId, *, clean: bool = False) -> None:
        """The turn is over; `clean`: its engines have ended it. Twice does no harm."""
        inflight = self.inflight
        self._fleet.end(request_id, clean=clean)
        if self.inflight < inflight:
            self._pass()

    def report_health(self, name: EngineId, healthy: bool, detail: str) -> None:
        state = self.engines[name]
        if state.healthy != healthy:
            self._infos = None
        state.healthy, state.detail = healthy, detail
        self._fleet.set_up(Rank(name), healthy)
        if not healthy:  # it may come back with other settings, and with nothing in memory
            self.past.emptied(Rank(name))
            state.learned, state.info = False, None
            self._tell_fleet(name, None)
        # Also without a change: time has passed for turns that wait for an engine to come back.
        self._pass()

    def report_info(
        self, name: EngineId, context_length: int | None, info: EngineInfo | None
    ) -> None:
        """What the engine says of itself now; null: nothing that is understood."""
        state = self.engines[name]
        changed = state.info != info
        state.context_length, state.info, state.learned = context_length, info, True
        if changed:  # it may go together with others than before
            self._tell_fleet(name, info)
            self._pass()

    def report(self, rank: Rank, report: EngineReport) -> None:
        """What an engine says of its load; its group fetches."""
        group = self._fleet.report(rank, report, self._clock.now())
        if group is not None:
            self.past.reported(rank, report.memory)
            self._pass(group)

    def missing_roles(self) -> tuple[Role, ...]:
        """Roles without any healthy engine; empty: turns can be served."""
        roles = {state.endpoint.role for state in self.engines.values()}
        needed: tuple[Role, ...] = ("plain",) if "plain" in roles else ("prefill", "decode")
        up = {state.endpoint.role for state in self.engines.values() if state.healthy}
        return tuple(role for role in needed if role not in up)

    def lacking(self) -> str:
        """Why no turn can be served, in words; empty where they can."""
        return lacking(self.view())

    def view(self, fetching: int | None = None) -> ClusterView:
        return self._fleet.view(
            max_inflight=self._config.max_inflight,
            no_engine_wait_s=self._config.no_engine_wait_s,
            cursor=self._cursor,
            split_policy=self._config.split_policy,
            fetching=fetching,
        )

    def _tell_fleet(self, name: EngineId, info: EngineInfo | None) -> None:
        self._infos = None
        kv_bytes = 0 if info is None else info.kv_bytes_per_token
        self._fleet.set_plans(Rank(name), info is not None, kv_bytes)
        self._fleet.set_namespace(Rank(name), "" if info is None else info.fingerprint)

    def _pass(self, fetching: int | None = None) -> None:
        settled = True
        while settled and self._waiting:
            turns = [entry.turn for entry in islice(self._waiting.values(), PASS_TURNS)]
            more = len(self._waiting) > len(turns)
            decisions = self._decide(turns, fetching)
            for decision in decisions:
                self._apply(decision)
            settled = more and any(isinstance(d, Placed | Refused) for d in decisions)

    def _decide(self, turns: Sequence[TurnView], fetching: int | None) -> list[Decision]:
        """A policy that fails costs nobody a turn: round robin takes over for this pass."""
        view, now = self.view(fetching), self._clock.now()
        for policy in (self._policy, round_robin):
            try:
                decisions = policy(view, turns, now, self._rng)
                self._check(turns, decisions)
                return decisions
            except Exception:
                self.policy_failures += 1
                if self.policy_failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ...
                    log.exception("placement failed for the %d. time", self.policy_failures)
        return []

    def _check(self, turns: Sequence[TurnView], decisions: Sequence[Decision]) -> None:
        """Raises Internal for decisions that could not be applied."""
        if [turn.id for turn in turns] != [decision.id for decision in decisions]:
            raise Internal("the policy did not give one decision for each turn, in their order")
        for decision in decisions:
            if isinstance(decision, Placed):
                for rank in ranks_of(decision):
                    if rank not in self._fleet:
                        raise Internal(f"turn {decision.id} was placed on {rank}: no such engine")

    def _apply(self, decision: Decision) -> None:
        if isinstance(decision, Placed):
            entry = self._waiting.pop(decision.id)
            self._cursor = advance(self._cursor, decision)
            self._fleet.place(decision, entry.turn)
            if not entry.placed.done():
                entry.placed.set_result(decision)
        elif isinstance(decision, Refused):
            entry = self._waiting.pop(decision.id)
            if not entry.placed.done():
                refusal = Saturated(decision.reason, retry_after_s=NO_ENGINE_RETRY_S)
                entry.placed.set_exception(refusal)
        else:
            entry = self._waiting[decision.id]
            turn = entry.turn
            if (turn.group, turn.overtaken) != (decision.group, decision.overtaken):
                entry.turn = replace(turn, group=decision.group, overtaken=decision.overtaken)
