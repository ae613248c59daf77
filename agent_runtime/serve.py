"""`python -m agent_runtime.serve --config router.yaml`: prints READY when it listens."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_runtime.config import RouterConfig
from agent_runtime.http.app import build_app
from agent_runtime.owners import EXPOSED, is_exposed
from agent_runtime.router import Router
from agent_runtime.settings import load
from dualpath_sglang.contract.addresses import host_port
from dualpath_sglang.contract.errors import ConfigError, DualPathError, StartupError

DRAIN_S = 5
"""How long turns under way may go on after SIGTERM."""
KEEP_ALIVE_S = 120
"""Clients keep connections for the next turn: closing one while they send would fail that turn."""
_OURS = "dualpath_sglang.contract.errors."


class _Server(uvicorn.Server):
    """Says READY once it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print("READY", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="agent_runtime.serve", description="The router.")
    parser.add_argument("--config", required=True, help="YAML file with the router's settings")
    options = parser.parse_args(argv)
    try:
        config = load(RouterConfig, file=options.config)
        logging.basicConfig(
            level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        if is_exposed(config.host, config.keys, config.insecure):
            raise ConfigError(f"host is {config.host}: {EXPOSED}", field="host")
        listener = _listen(config.host, config.port)
        app = build_app(Router(config))
    except DualPathError as error:
        print(f"router: {error.message}", file=sys.stderr)
        return 1
    settings = uvicorn.Config(
        brief_failures(app),
        loop="uvloop",
        http="httptools",
        log_level=config.log_level,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(settings)
    # uvicorn raises the signal that stopped it once more at its end; a stop in order is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def brief_failures(app: ASGIApp) -> ASGIApp:
    """What keeps the router from starting in one line, without the traceback that Starlette adds;
    that of a defect stays whole."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def shortened(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                last = message["message"].strip().rpartition("\n")[2]
                if last.startswith(_OURS):
                    message = {**message, "message": f"router: {last.partition(': ')[2]}"}
            await send(message)

        await app(scope, receive, shortened if scope["type"] == "lifespan" else send)

    return wrapped


def _stopped(number: int, frame: FrameType | None) -> None:
    """The server has stopped already."""


def _listen(host: str, port: int) -> socket.socket:
    """Raises StartupError. Bound here, so that a port in use is one clear line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host_port(host, port)}: {error.strerror}") from error
    listener.set_inheritable(True)
    return listener


if __name__ == "__main__":
    sys.exit(main())
