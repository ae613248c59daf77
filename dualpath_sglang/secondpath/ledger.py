"""The host pool's books: every page is in one place only.

free + held by the tree + owned by an operation + quarantined + set apart = total, disjoint
idle: owned by an operation = 0, pinned = 0
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

SHOWN = 8


@dataclass(frozen=True)
class Books:
    """Page numbers at one moment in which the engine is idle. tree: null where it cannot be
    walked; it is then what the others leave. leaving: freed by SGLang at its next round. reserved:
    set apart for probes. pinned: number of pages."""

    total: int
    free: Set[int]
    tree: Set[int] | None
    owned: Set[int]
    leaving: Set[int]
    quarantined: Set[int]
    pinned: int
    reserved: Set[int] = field(default_factory=frozenset)


def differences(books: Books) -> list[str]:
    """What is wrong, a sentence each; empty when the books are right."""
    parts = {
        "free": books.free,
        "owned by an operation": books.owned,
        "leaving": books.leaving,
        "quarantined": books.quarantined,
        "set apart": books.reserved,
    }
    if books.tree is not None:
        parts["held by the tree"] = books.tree
    found = _overlaps(parts)
    everything = set(range(books.total))
    known: set[int] = set().union(*parts.values())
    if known - everything:
        found.append(f"pages outside the pool: {_some(known - everything)}")
    if books.tree is not None and everything - known:
        found.append(f"lost pages, in no place: {_some(everything - known)}")
    if books.owned:
        found.append(f"idle, yet owned by an operation: {_some(books.owned)}")
    if books.pinned:
        found.append(f"idle, yet {books.pinned} pages are pinned")
    return found


def _overlaps(parts: dict[str, Set[int]]) -> list[str]:
    found = []
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if both := parts[one] & parts[other]:
                found.append(f"pages both {one} and {other}: {_some(both)}")
    return found


def _some(pages: Set[int]) -> str:
    shown = sorted(pages)[:SHOWN]
    more = len(pages) - len(shown)
    return f"{len(pages)} ({', '.join(map(str, shown))}{', ...' if more else ''})"
