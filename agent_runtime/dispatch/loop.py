"""The only writer of the router's live state: who is healthy, who is busy, who waits.

    something changed ─▶ view ─▶ schedule (pure) ─▶ apply each decision

Every change (a turn arrives or ends, an engine comes or goes) starts a pass. Nothing here awaits
between reading the state and writing it, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent_runtime.config import EngineEndpoint, Role, RouterConfig
from agent_runtime.scheduling.baselines import advance
from agent_runtime.scheduling.pairing import lacking
from agent_runtime.scheduling.placement import Placed, Policy, Refused
from agent_runtime.scheduling.view import ClusterView, Cursor, EngineView, TurnView
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.errors import Saturated
from dualpath_sglang.contract.ids import EngineId, RequestId

NO_ENGINE_RETRY_S = 5.0


@dataclass
class EngineState:
    endpoint: EngineEndpoint
    healthy: bool = False
    detail: str = "not checked yet"
    inflight: int = 0
    reading_tokens: int = 0
    context_length: int | None = None
    info: EngineInfo | None = None
    learned: bool = False
    """The engine has said the two above since it came up."""


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
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._max_inflight = config.max_inflight
        self._max_waiting = config.max_waiting
        self._no_engine_wait_s = config.no_engine_wait_s
        self._split_policy = config.split_policy
        self._waiting: dict[RequestId, _Waiting] = {}
        self._inflight: dict[RequestId, Placed] = {}
        self._loading: dict[RequestId, Placed] = {}
        self._cursor = Cursor()

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def place(self, turn: TurnView) -> Placed:
        """Waits for a placement; the caller must `release` it. Raises Saturated.

        A cancelled wait leaves the queue, also when the placement has just been made.
        """
        future: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._waiting[turn.id] = _Waiting(turn, future)
        self._pass()
        if not future.done() and len(self._waiting) > self._max_waiting:
            del self._waiting[turn.id]
            raise Saturated(
                f"{self.inflight} turns are in flight and {self.waiting} wait, the limits are "
                f"max_inflight={self._max_inflight} and max_waiting={self._max_waiting}"
            )
        # Nobody may report health meanwhile: there is no engine, or every check hangs.
        timer = asyncio.get_running_loop().call_later(self._no_engine_wait_s, self._pass)
        try:
            return await future
        except asyncio.CancelledError:
            self._waiting.pop(turn.id, None)
            self.release(turn.id)
            raise
        finally:
            timer.cancel()

    def infos(self) -> dict[EngineId, EngineInfo | None]:
        """What the healthy engines publish of themselves."""
        return {name: state.info for name, state in self.engines.items() if state.healthy}

    def loaded(self, request_id: RequestId) -> None:
        """The turn's cached prefix is in place: its first token is here. Twice does no harm."""
        placed = self._loading.pop(request_id, None)
        if placed is not None:
            self.engines[placed.prefill].reading_tokens -= placed.prefill_reads
            self.engines[placed.decode].reading_tokens -= placed.decode_reads

    def release(self, request_id: RequestId) -> None:
        """The turn is over, however it ended. Twice does no harm."""
        self.loaded(request_id)
        placed = self._inflight.pop(request_id, None)
        if placed is None:
            return
        for name in {placed.prefill, placed.decode}:
            self.engines[name].inflight -= 1
        self._pass()

    def report_health(self, name: EngineId, healthy: bool, detail: str) -> None:
        state = self.engines[name]
        state.healthy, state.detail = healthy, detail
        if not healthy:  # it may come back with other settings
            state.learned, state.info = False, None
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
            self._pass()

    def missing_roles(self) -> tuple[Role, ...]:
        """Roles without any healthy engine; empty: turns can be served."""
        roles = {state.endpoint.role for state in self.engines.values()}
        needed: tuple[Role, ...] = ("plain",) if "plain" in roles else ("prefill", "decode")
        up = {state.endpoint.role for state in self.engines.values() if state.healthy}
        return tuple(role for role in needed if role not in up)

    def lacking(self) -> str:
        """Why no turn can be served, in words; empty where they can."""
        return lacking(self.view())

    def view(self) -> ClusterView:
        engines = tuple(
            EngineView(
                name,
                state.endpoint.role,
                state.healthy,
                state.inflight,
                plans=state.info is not None,
                reading_tokens=state.reading_tokens,
                namespace="" if state.info is None else state.info.fingerprint,
            )
            for name, state in self.engines.items()
        )
        return ClusterView(
            engines,
            self.inflight,
            self._max_inflight,
            self._no_engine_wait_s,
            self._cursor,
            self._split_policy,
        )

    def _pass(self) -> None:
        if not self._waiting:
            return
        turns = [entry.turn for entry in self._waiting.values()]
        decisions = self._policy(self.view(), turns, self._clock.now(), self._rng)
        for decision in decisions:
            if isinstance(decision, Placed):
                self._apply(decision)
            elif isinstance(decision, Refused):
                refusal = Saturated(decision.reason, retry_after_s=NO_ENGINE_RETRY_S)
                future = self._waiting.pop(decision.id).placed
                if not future.done():
                    future.set_exception(refusal)

    def _apply(self, placed: Placed) -> None:
        self._cursor = advance(self._cursor, placed)
        self._inflight[placed.id] = self._loading[placed.id] = placed
        self.engines[placed.prefill].reading_tokens += placed.prefill_reads
        self.engines[placed.decode].reading_tokens += placed.decode_reads
        for name in {placed.prefill, placed.decode}:
            self.engines[name].inflight += 1
        future = self._waiting.pop(placed.id).placed
        if not future.done():
            future.set_result(placed)
