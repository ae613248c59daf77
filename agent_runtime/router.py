"""The router's parts, made and joined once; `http.app` puts HTTP in front of them."""

from __future__ import annotations

import random
import time
from typing import Any

import aiohttp

from agent_runtime.config import RouterConfig
from agent_runtime.dispatch.counts import TurnCounts
from agent_runtime.dispatch.engine_client import EngineClient, new_http
from agent_runtime.dispatch.engines import Engines
from agent_runtime.dispatch.fleet import fleet_of
from agent_runtime.dispatch.health import HealthChecks
from agent_runtime.dispatch.limits import Limits, model_facts
from agent_runtime.dispatch.loop import PlacementLoop
from agent_runtime.dispatch.pipeline import Pipeline
from agent_runtime.dispatch.text import Detokenizer
from agent_runtime.owners import Keys
from agent_runtime.planning.planner import Planner
from agent_runtime.planning.store_admin import StoreAdmin
from agent_runtime.scheduling.policies import POLICIES
from agent_runtime.trajectory.renderer import Renderer, RendererClient
from agent_runtime.trajectory.sessions import Sessions
from agent_runtime.trajectory.sqlite_store import SqliteStore
from dualpath_sglang.contract.clock import Clock, SystemClock


class Router:
    """`start` needs a running event loop, as do all the rest."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        """Raises ConfigError."""
        self.config = config
        self.rng = rng or random.SystemRandom()
        self._clock = clock or SystemClock()
        self.keys = Keys(config.keys, config.admin_key)
        self._facts = model_facts(config.model_path)
        self._detokenizer = Detokenizer.of(config.model_path)
        self._fleet = fleet_of(config.engines)
        policy = POLICIES[config.policy]
        self.loop = PlacementLoop(self._fleet, config, policy, clock=self._clock, rng=self.rng)
        self.sessions = Sessions(
            SqliteStore(config.database or ":memory:"),
            max_sessions=config.max_sessions,
            max_loaded=config.loaded_sessions if config.database else config.max_sessions,
            wall_time=time.time,
        )
        self.counts = TurnCounts()
        self.renderer = renderer or RendererClient(config.renderer_socket)
        self._http: aiohttp.ClientSession | None = None
        self.engines: Engines
        self.pipeline: Pipeline
        self._health: HealthChecks

    async def start(self) -> None:
        """Raises StartupError when the session store cannot be opened."""
        await self.sessions.open()
        self._http = http = new_http()
        clients = {name: EngineClient(http, endpoint) for name, endpoint in self._fleet.items()}
        self.engines = Engines(clients, self.loop, clock=self._clock, rng=self.rng)
        planner = Planner(
            self.loop.infos,
            self._store_admin(http),
            clock=self._clock,
            rng=self.rng,
            known_ttl_s=self.config.known_pages_ttl_s,
            timeout_s=self.config.store_timeout_s,
            deadline_s=self.config.plan_deadline_s,
        )
        limits = Limits(
            self._facts.vocab_size, self.context_length, self.config.default_max_new_tokens
        )
        self.pipeline = Pipeline(
            self.sessions,
            self.renderer,
            self.loop,
            self.engines,
            limits,
            planner,
            self._detokenizer,
            self.counts,
            clock=self._clock,
            default_deadline_s=self.config.turn_deadline_s,
        )
        self._health = HealthChecks(clients, self.loop, self.engines.drop, self.config)
        self._health.start()

    async def stop(self) -> None:
        """Turns under way are cancelled on their engines first."""
        await self._health.stop()
        await self.sessions.close()
        await self.engines.close()
        await self.renderer.close()
        assert self._http is not None
        await self._http.close()

    def _store_admin(self, http: aiohttp.ClientSession) -> StoreAdmin | None:
        """Null where nothing is planned: then the master is never asked."""
        url = self.config.store_admin_url
        if not url or self.config.split_policy == "none":
            return None
        return StoreAdmin(http, url, timeout_s=self.config.store_timeout_s)

    def context_length(self) -> int | None:
        """The smallest that the configuration, an engine or else the model's files know."""
        limits = [state.context_length for state in self.loop.engines.values()]
        known = [n for n in (*limits, self.config.context_length) if n]
        return min(known) if known else self._facts.context_length

    def engine_trees(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "role": state.endpoint.role,
                "url": state.endpoint.url,
                "healthy": state.healthy,
                "detail": state.detail,
                "inflight": self.loop.turns_on(name),
                "context_length": state.context_length,
                "reading_tokens": self.loop.reading_tokens(name),
                "info": None if state.info is None else state.info.to_tree(),
            }
            for name, state in self.loop.engines.items()
        ]
