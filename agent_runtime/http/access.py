"""Who may use which route: dependencies of the groups of routes."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from agent_runtime.owners import Keys
from dualpath_sglang.contract.ids import OwnerId


def for_clients(keys: Keys) -> list[Any]:
    """Sets what `owner_of` returns. Raises Unauthorized."""

    async def check(request: Request) -> None:
        request.state.owner = keys.owner(request.headers)

    return [Depends(check)]


def for_admins(keys: Keys) -> list[Any]:
    """Raises Unauthorized or Forbidden."""

    async def check(request: Request) -> None:
        keys.check_admin(request.headers)

    return [Depends(check)]


def owner_of(request: Request) -> OwnerId:
    owner: OwnerId = request.state.owner
    return owner
