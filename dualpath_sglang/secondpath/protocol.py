"""What P and D say to each other about a planned exchange: one JSON object a line, over TCP.

    P                                   D
      hello {fingerprint}  ->
                           <-  hello {fingerprint, nonce, session, base, ...}
      want {room, plan, lo, hi}  ->
                           <-  ready {room, plan, lo, slots, hashes, sums, lease_s}   (many)
                           <-  alive {room, plan}              (nothing new yet; once a second)
                           <-  end {room, plan, reason}        (no more will become ready)
      done {room, plan}    ->

P reads the bytes itself, with one-sided reads. A connection that breaks ends every exchange on it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

MAX_LINE = 4 * 1024 * 1024
"""Bytes. A ready message carries some 60 bytes for each page."""
HASH_DIGITS: Final = 16
"""Leading hex digits of a page's hash that D sends: 64 bits."""


class ProtocolError(ValueError):
    """A line that is no message. The connection it came from is closed."""


@dataclass(frozen=True)
class Hello:
    """From P only the fingerprint counts. session: of D's transfer engine. base: address of page
    0's K. page_bytes: K (or V) of one page. v_offset: from a page's K to its V, 0 if there is no V
    apart. nonce: new at every start of D. pages: of D's host pool."""

    fingerprint: str
    nonce: str = ""
    session: str = ""
    base: int = 0
    page_bytes: int = 0
    v_offset: int = 0
    pages: int = 0


@dataclass(frozen=True)
class Want:
    """Pages [lo, hi) of the prompt."""

    room: int
    plan_id: str
    lo: int
    hi: int


@dataclass(frozen=True)
class Ready:
    """Pages from `lo` on lie in D's host pool. slots: page numbers there. hashes: leading digits
    of the page hashes. sums: checksums as hex, empty when D computes none. lease_s: they stay
    there that long from the moment of sending."""

    room: int
    plan_id: str
    lo: int
    slots: tuple[int, ...]
    hashes: tuple[str, ...]
    sums: tuple[str, ...]
    lease_s: float


@dataclass(frozen=True)
class Alive:
    """D still works on it."""

    room: int
    plan_id: str


@dataclass(frozen=True)
class End:
    """Nothing more comes for this exchange. reason: empty when all of it was ready."""

    room: int
    plan_id: str
    reason: str


@dataclass(frozen=True)
class Done:
    """P reads nothing of this exchange any more."""

    room: int
    plan_id: str


Message = Hello | Want | Ready | Alive | End | Done
_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind for kind in (Hello, Want, Ready, Alive, End, Done)
}
_LEAF = {"int": int, "str": str, "float": (int, float)}


def encode(message: Message) -> bytes:
    tree = {"kind": type(message).__name__.lower(), **asdict(message)}
    return json.dumps(tree, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Raises ProtocolError: no JSON, an unknown kind, a missing, unknown or mistyped field."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {line[:80]!r}") from error
    kind = _KINDS.get(str(tree.pop("kind", ""))) if isinstance(tree, dict) else None
    if kind is None:
        raise ProtocolError(f"no known message: {line[:80]!r}")
    names = {field.name: str(field.type) for field in fields(kind)}
    if tree.keys() != names.keys():
        raise ProtocolError(f"{kind.__name__} has the fields {sorted(tree)}")
    message: Message = kind(**{n: _checked(n, names[n], v) for n, v in tree.items()})
    if isinstance(message, Ready) and not _equal_lengths(message):
        raise ProtocolError("Ready with lists of different lengths")
    return message


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple["):
        leaf = kind.removeprefix("tuple[").split(",")[0]
        if not isinstance(value, list):
            raise ProtocolError(f"{name} is no list")
        return tuple(_checked(name, leaf, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, _LEAF[kind]):  # type: ignore[arg-type]
        raise ProtocolError(f"{name} is no {kind}")
    return value


def _equal_lengths(ready: Ready) -> bool:
    count = len(ready.slots)
    return len(ready.hashes) == count and len(ready.sums) in (0, count)
