"""The FastAPI application around a router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from agent_runtime.http import failures
from agent_runtime.http.admin import admin_routes, metrics_routes, model_routes, probe_routes
from agent_runtime.http.body import RequestIds
from agent_runtime.http.sessions import session_routes
from agent_runtime.router import Router


def build_app(router: Router) -> FastAPI:
    """The router starts and stops with the application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await router.start()
        try:
            yield
        finally:
            await router.stop()

    app = FastAPI(title="dualpath-sglang", version="1", lifespan=lifespan)
    app.add_middleware(RequestIds)
    failures.install(app)
    app.include_router(session_routes(router))
    app.include_router(model_routes(router))
    app.include_router(probe_routes(router))
    app.include_router(metrics_routes(router))
    app.include_router(admin_routes(router))
    return app
