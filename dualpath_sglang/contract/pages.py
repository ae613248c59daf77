"""Names of KV pages in the store: chained hashes of their tokens, and the objects of one page.

    page 0        page 1                          objects of one page
    h0 = H(t0) -> h1 = H(h0, t1) -> ...           prefix + h + suffix, for each suffix

The chain is SGLang's (0.5.21 `mem_cache/utils.py`, `get_storage_hash_str`): SHA-256 over the
previous digest and the page's tokens as little-endian 32-bit numbers. A page's hash therefore
names the whole prefix that ends with it. Prefix and suffixes are never made up here: an engine
publishes them as a `KeyLayout`.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

_NAMESPACE = b"sglang-cache-namespace-v1"


@dataclass(frozen=True)
class KeyLayout:
    """How one store spells the objects of a page; published by an engine, equal on all of them.

    `suffixes` covers every tensor-parallel rank, and both K and V where they are apart: a page
    exists when all of its objects do. `page_size` in tokens.
    """

    prefix: str
    suffixes: tuple[str, ...]
    page_size: int
    tp_size: int
    is_mla: bool

    def object_keys(self, page_hash: str) -> tuple[str, ...]:
        """Every object of one page."""
        return tuple(f"{self.prefix}{page_hash}{suffix}" for suffix in self.suffixes)


def namespace_seed(extra_key: str | None, cache_salt: str | None) -> bytes | None:
    """The digest that stands before page 0; null: the common namespace, no digest."""
    if extra_key is None and cache_salt is None:
        return None
    digest = hashlib.sha256(_NAMESPACE)
    for part in (extra_key, cache_salt):
        if part is None:
            digest.update(b"\x00")
        else:
            text = part.encode()
            digest.update(b"\x01" + len(text).to_bytes(8, "little") + text)
    return digest.digest()


class PageHasher:
    """Hashes of all full pages of a token sequence that grows and is cut back.

    Work is proportional to what is appended since the last common page: earlier hashes are kept.
    """

    def __init__(
        self, page_size: int, *, extra_key: str | None = None, cache_salt: str | None = None
    ) -> None:
        if page_size < 1:
            raise ValueError(f"a page has at least one token, not {page_size}")
        self.page_size = page_size
        self._seed = namespace_seed(extra_key, cache_salt)
        self._digests: list[bytes] = []
        self._hashes: list[str] = []

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(self._hashes)

    @property
    def pages(self) -> int:
        return len(self._hashes)

    def keep(self, tokens: int) -> None:
        """Forget every page that does not lie whole within the first `tokens` tokens."""
        pages = max(0, tokens) // self.page_size
        del self._digests[pages:], self._hashes[pages:]

    def extend(self, tokens: Sequence[int]) -> None:
        """`tokens`: the whole sequence. Hashes the full pages that are not hashed yet; the pages
        that are must be unchanged (`keep` drops those that are not)."""
        for start in range(self.pages * self.page_size, self._end(len(tokens)), self.page_size):
            digest = hashlib.sha256(self._digests[-1] if self._digests else self._seed or b"")
            digest.update(_bytes(tokens[start : start + self.page_size]))
            self._digests.append(digest.digest())
            self._hashes.append(digest.hexdigest())

    def _end(self, tokens: int) -> int:
        return tokens - tokens % self.page_size


def page_hashes(
    tokens: Sequence[int],
    page_size: int,
    *,
    extra_key: str | None = None,
    cache_salt: str | None = None,
) -> tuple[str, ...]:
    """The hashes of all full pages of `tokens`, first page first."""
    hasher = PageHasher(page_size, extra_key=extra_key, cache_salt=cache_salt)
    hasher.extend(tokens)
    return hasher.hashes


def _bytes(tokens: Sequence[int]) -> bytes:
    """Raises OverflowError for an id that is not a 32-bit number."""
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
