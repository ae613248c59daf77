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

from typing import Final

import msgspec
from msgspec import Struct

MAX_LINE = 4 * 1024 * 1024
"""Bytes. A ready message carries some 60 bytes for each page."""
HASH_DIGITS: Final = 16
"""Leading hex digits of a page's hash that D sends: 64 bits."""


class ProtocolError(ValueError):
    """A line that is no message. The connection it came from is closed."""


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag=str.lower):
    pass


class Hello(_Message, frozen=True):
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


class Want(_Message, frozen=True):
    """Pages [lo, hi) of the prompt."""

    room: int
    plan_id: str
    lo: int
    hi: int


class Ready(_Message, frozen=True):
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


class Alive(_Message, frozen=True):
    """D still works on it."""

    room: int
    plan_id: str


class End(_Message, frozen=True):
    """Nothing more comes for this exchange. reason: empty when all of it was ready."""

    room: int
    plan_id: str
    reason: str


class Done(_Message, frozen=True):
    """P reads nothing of this exchange any more."""

    room: int
    plan_id: str


Message = Hello | Want | Ready | Alive | End | Done
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Raises ProtocolError: no JSON, an unknown kind, a missing, unknown or mistyped field."""
    try:
        message: Message = _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"no known message ({error}): {line[:80]!r}") from error
    if isinstance(message, Ready) and not _equal_lengths(message):
        raise ProtocolError("Ready with lists of different lengths")
    return message


def _equal_lengths(ready: Ready) -> bool:
    count = len(ready.slots)
    return len(ready.hashes) == count and len(ready.sums) in (0, count)
