"""What operators and load balancers ask: is it up, what is it doing, empty the caches."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Response

from agent_runtime.http.access import for_admins, for_clients
from agent_runtime.http.metrics import CONTENT_TYPE, exposition
from agent_runtime.router import Router
from agent_runtime.scheduling.view import Rank
from dualpath_sglang.contract.errors import EngineFailure


def _json(tree: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(tree), status_code=status, media_type="application/json")


def probe_routes(router: Router) -> APIRouter:
    """For everybody."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        """The router itself is alive."""
        return _json({"status": "ok"})

    @routes.get("/ready")
    async def ready() -> Response:
        """Turns can be served: 200, or 503 with the reason and the roles that lack an engine."""
        why, missing = router.loop.lacking(), router.loop.missing_roles()
        tree = {"ready": not why, "missing": missing, "why": why}
        return _json(tree, 503 if why else 200)

    return routes


def metrics_routes(router: Router) -> APIRouter:
    protected = router.config.protect_metrics
    routes = APIRouter(dependencies=for_admins(router.keys) if protected else None)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(router), media_type=CONTENT_TYPE)

    return routes


def model_routes(router: Router) -> APIRouter:
    routes = APIRouter(dependencies=for_clients(router.keys))

    @routes.get("/v1/models")
    async def models() -> Response:
        card = {"id": router.config.model_name, "object": "model", "owned_by": "dualpath"}
        return _json({"object": "list", "data": [card]})

    return routes


def admin_routes(router: Router) -> APIRouter:
    routes = APIRouter(dependencies=for_admins(router.keys))

    @routes.get("/admin/engines")
    async def engines() -> Response:
        return _json({"engines": router.engine_trees(), "inflight": router.loop.inflight})

    @routes.post("/admin/flush_cache")
    async def flush() -> Response:
        """Every engine's own caches, not the store. 502 if one refuses; the others have done it."""
        clients = list(router.engines.clients.values())
        done = await asyncio.gather(*(c.flush() for c in clients), return_exceptions=True)
        for name in router.engines.clients:
            router.loop.past.emptied(Rank(name))
        failed = [outcome for outcome in done if isinstance(outcome, BaseException)]
        if failed:
            raise EngineFailure("; ".join(str(error) for error in failed))
        return _json({"flushed": [client.endpoint.name for client in clients]})

    return routes
