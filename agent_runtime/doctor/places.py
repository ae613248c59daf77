"""Where the parts of a running stack are: from its run folder, or from its router."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from agent_runtime.client_wire import key_headers
from agent_runtime.settings import KEY_VARIABLE
from agent_runtime.stack.status import SCHEMA
from dualpath_sglang.contract.addresses import http_url, split_host_port
from dualpath_sglang.contract.errors import ConfigError, StartupError

ROUTER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Part:
    """One component. url: http://... or, of the master, host:port. state: as its stack sees it,
    empty where nobody watches it. pid: 0 where it is not known."""

    name: str
    kind: str
    role: str = ""
    url: str = ""
    state: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Places:
    """store_admin_url: of the master's HTTP port, empty where it is not known."""

    parts: tuple[Part, ...]
    store_admin_url: str = ""

    @property
    def engines(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind == "engine")


def from_run_dir(run_dir: Path) -> Places:
    """Of a stack on this machine. Raises ConfigError where there is none."""
    file = run_dir / "status.json"
    hint = "`dualpath up` writes it; --run-dir or --router say where the stack is"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {file}: {hint}", field="run-dir") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", field="run-dir") from error
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise ConfigError(f"{file} is no status of a stack ({SCHEMA})", field="run-dir")
    if tree["state"] == "stopped":
        raise ConfigError(f"the stack of {run_dir} was stopped", field="run-dir")
    parts = tuple(_part(component) for component in tree["components"])
    masters = [c for c in tree["components"] if c["kind"] == "master" and c["ports"]]
    return Places(parts, _admin_url(masters[0]) if masters else "")


async def from_router(http: aiohttp.ClientSession, url: str) -> Places:
    """The engines that a router knows. Raises StartupError where it does not say."""
    url = url.rstrip("/")
    timeout = aiohttp.ClientTimeout(total=ROUTER_TIMEOUT_S)
    try:
        async with http.get(
            f"{url}/admin/engines", timeout=timeout, headers=key_headers(os.environ)
        ) as reply:
            if reply.status in (401, 403):
                message = f"the router at {url} wants its admin key: set {KEY_VARIABLE}"
                raise StartupError(message)
            trees = orjson.loads(await reply.read())["engines"]
            engines = [Part(t["name"], "engine", t["role"], t["url"].rstrip("/")) for t in trees]
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise StartupError(f"the router at {url} does not answer: {why}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{url} is no router: /admin/engines makes no sense") from error
    return Places((Part("router", "router", url=url), *engines))


def _part(tree: dict[str, Any]) -> Part:
    return Part(
        name=tree["name"],
        kind=tree["kind"],
        role=tree["role"],
        url=tree["url"].rstrip("/"),
        state="" if tree["external"] else tree["state"],
        pid=tree["pid"] or 0,
    )


def _admin_url(master: dict[str, Any]) -> str:
    host, _ = split_host_port(master["url"])
    return http_url(host, master["ports"]["metrics"])
