"""What a turn's engines are told about its cached prefix.

    look_up                        schedule (pure)              plan
    page hashes, n from the store  ─▶  P, D and split k   ─▶   the message to both

Advice throughout: whatever is missing here (an engine without the plugin, a store that does not
answer), the turn runs without a plan, and the reason stands in its placement.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent_runtime.planning.existence import Existence
from agent_runtime.planning.plan_fleet import PlanFleet, plan_fleet
from agent_runtime.planning.store_admin import Objects
from agent_runtime.scheduling.placement import Placed
from agent_runtime.trajectory.session import Session
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.errors import StoreFailure
from dualpath_sglang.contract.ids import EngineId
from dualpath_sglang.contract.pages import KeyLayout, PageHasher
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
    """`infos`: of the healthy engines, as they are now. `objects` null: no store to ask."""

    def __init__(
        self,
        infos: Infos,
        objects: Objects | None,
        *,
        clock: Clock,
        rng: random.Random,
        known_ttl_s: float,
        deadline_s: float,
    ) -> None:
        self._infos = infos
        self._objects = objects
        self._clock = clock
        self._rng = rng
        self._known_ttl_s = known_ttl_s
        self._deadline_ms = max(1, round(deadline_s * 1000))
        self._existence: Existence | None = None
        self._paused_until = 0.0
        self._said = ""

    async def look_up(self, session: Session, kept: int, prompt: array[int]) -> Cached:
        """`prompt` is `session.tokens[:kept]` and what the turn appends. Never raises for the
        store's sake."""
        if self._objects is None:
            return Cached(None, "the router knows no store to ask")
        fleet = plan_fleet(self._infos())
        if isinstance(fleet, str):
            return self._unknown(fleet)
        if self._clock.now() < self._paused_until:
            return Cached(None, "the store's master did not answer a moment ago")
        hashes = prompt_hashes(session, kept, prompt, fleet.layout.page_size)
        try:
            pages = await self._asked(fleet.layout).longest_prefix(hashes)
        except StoreFailure as error:
            self._paused_until = self._clock.now() + STORE_PAUSE_S
            return self._unknown(error.message)
        self._said = ""
        return Cached(pages, fleet=fleet)

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
        return self._existence

    def _unknown(self, why: str) -> Cached:
        if why != self._said:
            log.warning("no plans: %s", why)
            self._said = why
        return Cached(None, why)


def prompt_hashes(
    session: Session, kept: int, prompt: array[int], page_size: int
) -> tuple[str, ...]:
    """Hashes of the prompt's pages that can be loaded: all full ones but the last token's.

    The session keeps the hashes of its history, so a turn hashes what the last one added and what
    this one appends.
    """
    if session.pages is None or session.pages.page_size != page_size:
        session.pages = PageHasher(page_size)
    session.pages.extend(session.tokens)
    # The turn may fail, so what it appends is hashed beside the history and not into it.
    hasher = session.pages.fork(kept)
    loadable = (len(prompt) - 1) // page_size
    hasher.extend(prompt[: loadable * page_size])
    return hasher.hashes(0, loadable)
