"""From an API key to its owner. Pure.

    Authorization, x-api-key ─▶ `Keys` ─▶ OwnerId ─▶ sessions of that owner, and no others

Keys are kept and compared as digests, all of them each time, so that how long it takes says
nothing about a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from dualpath_sglang.contract.addresses import is_loopback
from dualpath_sglang.contract.errors import ConfigError, Forbidden, Unauthorized
from dualpath_sglang.contract.ids import OwnerId

ANONYMOUS = OwnerId("")
"""Owns everything where no keys are configured; no configured owner can have this name."""
_BEARER = "bearer "


class Keys:
    """`keys`: by the name of their owner. Raises ConfigError where one key has two meanings."""

    def __init__(self, keys: Mapping[str, str], admin_key: str = "") -> None:
        self._owners = {OwnerId(name): _digest(key) for name, key in keys.items()}
        self._admin = _digest(admin_key) if admin_key else None
        digests = [*self._owners.values(), *([self._admin] if self._admin else [])]
        if len(set(digests)) < len(digests):
            raise ConfigError(
                "keys: two owners have the same key, or one has the admin_key", field="keys"
            )

    def owner(self, headers: Mapping[str, str]) -> OwnerId:
        """Whose request it is. `headers`: names in small letters. Raises Unauthorized."""
        if not self._owners:
            return ANONYMOUS
        found = {owner for key in _presented(headers) for owner in self._owners_of(key)}
        if len(found) != 1:
            raise _no_key("two keys of different owners" if found else _why(headers))
        return found.pop()

    def check_admin(self, headers: Mapping[str, str]) -> None:
        """Raises Unauthorized or, for a key that opens sessions only, Forbidden."""
        if self._admin is None:
            self.owner(headers)
            return
        keys = _presented(headers)
        if any(hmac.compare_digest(_digest(key), self._admin) for key in keys):
            return
        if any(self._owners_of(key) for key in keys):
            raise Forbidden("this needs the admin_key of the router")
        raise _no_key(_why(headers))

    def _owners_of(self, key: str) -> list[OwnerId]:
        digest = _digest(key)
        same = hmac.compare_digest
        return [owner for owner, known in self._owners.items() if same(digest, known)]


def is_exposed(host: str, keys: Mapping[str, str], insecure: bool) -> bool:
    """Whether others than this machine could use a router at `host` without a key."""
    return not (insecure or keys or is_loopback(host))


EXPOSED = "other machines reach it and no key is asked for: set router.keys, or --insecure"


def _presented(headers: Mapping[str, str]) -> Sequence[str]:
    """Every key of a request: SDKs send one or the other header, some both."""
    bearer = headers.get("authorization", "")
    given = [bearer[len(_BEARER) :].strip()] if bearer.lower().startswith(_BEARER) else []
    return [key for key in (*given, headers.get("x-api-key", "").strip()) if key]


def _why(headers: Mapping[str, str]) -> str:
    return "a key that nobody has" if _presented(headers) else "no key"


def _no_key(what: str) -> Unauthorized:
    return Unauthorized(
        f"the request has {what}: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
        field="Authorization",
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
