"""What a turn's engines are told about its cached prefix.

    look_up                        schedule (pure)              plan
    page hashes, n from the store  ─▶  P, D and split k   ─▶   the message to both

Advice throughout: whatever is missing here (an engine without the plugin, a store that does not
answer), the turn runs without a plan, and the reason stands in its placement.
"""

from __future__ import annotations

import asyncio
import logging
import random
import weakref
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent_runtime.planning.chain import prompt_chain
from agent_runtime.planning.existence import NOTHING, Existence, Known
from agent_runtime.planning.plan_fleet import PlanFleet, plan_fleet
from agent_runtime.planning.store_admin import Objects
from agent_runtime.scheduling.placement import Placed
from agent_runtime.trajectory.session import Session
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.errors import StoreFailure
from dualpath_sglang.contract.ids import EngineId
from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.contract.plan import Plan

log = logging.getLogger("dualpath.planning")

STORE_PAUSE_S = 5.0
"""After a failed query the master is left alone: a turn must not wait for it again and again."""
MAX_KNOWN_PAGES = 200_000
"""Pages remembered as present, about 150 bytes each."""

Infos = Callable[[], Mapping[EngineId, EngineInfo | None]]


@dataclass(frozen=True)
class Cached:
    """`pages` leading full pages of the prompt are in the store (null: unknown, and `why`)."""

    pages: int | None
    why: str = ""
    fleet: PlanFleet | None = None

    @property
    def page_size(self) -> int:
        return 0 if self.fleet is None else self.fleet.layout.page_size

    @property
    def namespace(self) -> str:
        """Of those pages; empty: unknown."""
        return "" if self.fleet is None else self.fleet.fingerprint


class Planner:
    """`infos`: of the healthy engines, as they are now; the same object until something changes.
    `objects` null: no store to ask."""

    def __init__(
        self,
        infos: Infos,
        objects: Objects | None,
        *,
        clock: Clock,
        rng: random.Random,
        known_ttl_s: float,
        timeout_s: float,
        deadline_s: float,
    ) -> None:
        """timeout_s: for all questions of one look-up. deadline_s: of the plans."""
        self._infos = infos
        self._objects = objects
        self._clock = clock
        self._rng = rng
        self._known_ttl_s = known_ttl_s
        self._timeout_s = timeout_s
        self._deadline_ms = max(1, round(deadline_s * 1000))
        self._existence: Existence | None = None
        self._known: weakref.WeakKeyDictionary[Session, Known] = weakref.WeakKeyDictionary()
        self._fleet_of: Mapping[EngineId, EngineInfo | None] = {}
        self._fleet: PlanFleet | str = plan_fleet({})
        self._paused_until = 0.0
        self._said = ""

    async def look_up(self, session: Session, kept: int, prompt: array[int]) -> Cached:
        """`prompt` is `session.tokens[:kept]` and what the turn appends. Never raises for the
        store's sake."""
        if self._objects is None:
            return Cached(None, "the router knows no store to ask")
        fleet = self._plan_fleet()
        if isinstance(fleet, str):
            return self._unknown(fleet)
        if self._clock.now() < self._paused_until:
            return Cached(None, "the store's master did not answer a moment ago")
        existence = self._asked(fleet.layout)
        chain = prompt_chain(session, kept, prompt, fleet.layout.page_size)
        try:
            async with asyncio.timeout(self._timeout_s):
                known = await existence.longest_prefix(chain, self._known.get(session, NOTHING))
        except TimeoutError:
            return self._gone(f"the store's master: no answer in {self._timeout_s:g} s")
        except StoreFailure as error:
            return self._gone(error.message)
        self._known[session] = known
        self._said = ""
        return Cached(known.pages, fleet=fleet)

    def plan(self, placed: Placed, cached: Cached) -> Plan | None:
        """The message for a placed turn; None where the placement has no split or there is
        nothing to load."""
        fleet = cached.fleet
        if placed.split is None or not cached.pages or fleet is None:
            return None
        if not fleet.engines >= {placed.prefill, placed.decode}:
            return None  # an engine that came up while the turn waited
        return Plan(
            plan_id=f"{self._rng.getrandbits(64):016x}",
            n=cached.pages,
            k=placed.split,
            page=fleet.layout.page_size,
            peer=fleet.exports[placed.decode],
            deadline_ms=self._deadline_ms,
            fingerprint=fleet.fingerprint,
        )

    def _plan_fleet(self) -> PlanFleet | str:
        """Made anew when the engines say something new, not for every turn."""
        infos = self._infos()
        if infos is not self._fleet_of:
            self._fleet_of, self._fleet = infos, plan_fleet(infos)
        return self._fleet

    def _asked(self, layout: KeyLayout) -> Existence:
        """Where this layout's pages are asked for; a new layout starts with nothing known."""
        assert self._objects is not None
        if self._existence is None or self._existence.layout != layout:
            self._existence = Existence(
                self._objects,
                layout,
                clock=self._clock,
                ttl_s=self._known_ttl_s,
                max_known=MAX_KNOWN_PAGES,
            )
            self._known.clear()
        return self._existence

    def _gone(self, why: str) -> Cached:
        self._paused_until = self._clock.now() + STORE_PAUSE_S
        return self._unknown(why)

    def _unknown(self, why: str) -> Cached:
        if why != self._said:
            log.warning("no plans: %s", why)
            self._said = why
        return Cached(None, why)
