"""Where the pages of a host pool lie in memory. Layouts whose pages are contiguous only."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_sglang.secondpath.spans import Span


@dataclass(frozen=True)
class HostPool:
    """base: address of page 0's K. page_bytes: K (or V) of one page, all layers. v_offset: bytes
    from a page's K to its V; 0: K and V are one (MLA). pages: how many. page_size: tokens."""

    base: int
    page_bytes: int
    v_offset: int
    pages: int
    page_size: int

    @property
    def size(self) -> int:
        """Bytes of the whole region, K and V."""
        return self.v_offset + self.pages * self.page_bytes

    @property
    def bytes_per_page(self) -> int:
        """K and V of one page."""
        return self.page_bytes * (2 if self.v_offset else 1)

    def addresses(self, page: int) -> tuple[int, ...]:
        """Addresses of a page's K and, where it is apart, V."""
        at = self.base + page * self.page_bytes
        return (at, at + self.v_offset) if self.v_offset else (at,)


@dataclass(frozen=True)
class Entries:
    """One batch of reads; addresses and lengths in bytes."""

    local: list[int]
    remote: list[int]
    lengths: list[int]


def entries(spans: list[Span], here: HostPool, there: HostPool) -> Entries:
    """The reads that copy `spans` from `there` to `here`. Raises ValueError for pages outside."""
    made = Entries([], [], [])
    for span in spans:
        for first, pool in ((span.local, here), (span.remote, there)):
            if not 0 <= first <= first + span.pages <= pool.pages:
                raise ValueError(f"pages {first}+{span.pages} of a pool of {pool.pages}")
        for local, remote in zip(
            here.addresses(span.local), there.addresses(span.remote), strict=True
        ):
            made.local.append(local)
            made.remote.append(remote)
            made.lengths.append(span.pages * here.page_bytes)
    return made
