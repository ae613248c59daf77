"""Token ids as packed arrays: 4 bytes each, in memory and in the database."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

TYPECODE = "I"


def pack(token_ids: Iterable[int] = ()) -> array[int]:
    """Raises OverflowError for an id below 0 or of more than 32 bits."""
    return array(TYPECODE, token_ids)


def to_bytes(tokens: array[int]) -> bytes:
    """Little-endian on every machine: a database can move."""
    if sys.byteorder == "big":
        tokens = array(TYPECODE, tokens)
        tokens.byteswap()
    return tokens.tobytes()


def from_bytes(data: bytes) -> array[int]:
    tokens = array(TYPECODE)
    tokens.frombytes(data)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
