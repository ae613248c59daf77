"""Names of KV pages in the store: chained hashes of their tokens, and the objects of one page.

    page 0        page 1                          objects of one page
    h0 = H(t0) -> h1 = H(h0, t1) -> ...           prefix + h + suffix, for each suffix

The chain is SGLang's (`mem_cache/utils.py`, `get_storage_hash_str`): SHA-256 over the
previous digest and the page's tokens as little-endian 32-bit numbers. A page's hash therefore
names the whole prefix that ends with it. (Requests with an extra key or a cache salt have chains of
their own; the router sends neither.) Prefix and suffixes are never made up here: an engine
publishes them as a `KeyLayout`.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence

from msgspec import Struct

from dualpath_sglang.contract.kinds import Positive

_DIGEST = 32
"""Bytes of one SHA-256 digest."""


class KeyLayout(Struct, frozen=True, forbid_unknown_fields=True):
    """How one store spells the objects of a page; published by an engine, equal on all of them.

    `suffixes` covers every tensor-parallel rank, and both K and V where they are apart: a page
    exists when all of its objects do. `page_size` in tokens.
    """

    prefix: str
    suffixes: tuple[str, ...]
    page_size: Positive
    tp_size: Positive

    def object_keys(self, page_hash: str) -> tuple[str, ...]:
        """Every object of one page."""
        return tuple(f"{self.prefix}{page_hash}{suffix}" for suffix in self.suffixes)


class PageHasher:
    """Hashes of all full pages of a token sequence that grows and is cut back.

    Work is proportional to what is appended: earlier digests are kept, 32 bytes a page.
    """

    def __init__(self, page_size: int) -> None:
        if page_size < 1:
            raise ValueError(f"a page has at least one token, not {page_size}")
        self.page_size = page_size
        self._digests = bytearray()

    @property
    def pages(self) -> int:
        return len(self._digests) // _DIGEST

    def hashes(self, first: int = 0, last: int | None = None) -> list[str]:
        """Of the pages [first, last), in hexadecimal as the store's keys have them."""
        end = self.pages if last is None else min(last, self.pages)
        digests = self._digests
        return [digests[i * _DIGEST : (i + 1) * _DIGEST].hex() for i in range(first, end)]

    def keep(self, tokens: int) -> None:
        """Forget every page that does not lie whole within the first `tokens` tokens."""
        del self._digests[max(0, tokens) // self.page_size * _DIGEST :]

    def following(self, tokens: Sequence[int], first: int, last: int) -> list[str]:
        """Of the pages [first, last) of `tokens`, whose pages before `first` are this one's; they
        are not kept."""
        size = self.page_size
        digest = bytes(self._digests[max(0, first - 1) * _DIGEST : first * _DIGEST])
        found: list[str] = []
        for start in range(first * size, last * size, size):
            digest = hashlib.sha256(digest + _bytes(tokens[start : start + size])).digest()
            found.append(digest.hex())
        return found

    def extend(self, tokens: Sequence[int]) -> None:
        """`tokens`: the whole sequence. Hashes the full pages that are not hashed yet; the pages
        that are must be unchanged (`keep` drops those that are not)."""
        known, size = self.pages, self.page_size
        last = bytes(self._digests[-_DIGEST:])
        for start in range(known * size, len(tokens) - size + 1, size):
            last = hashlib.sha256(last + _bytes(tokens[start : start + size])).digest()
            self._digests += last


def page_hashes(tokens: Sequence[int], page_size: int) -> list[str]:
    """The hashes of all full pages of `tokens`, first page first."""
    hasher = PageHasher(page_size)
    hasher.extend(tokens)
    return hasher.hashes()


def _bytes(tokens: Sequence[int]) -> bytes:
    """Raises OverflowError for an id that is not a 32-bit number."""
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
