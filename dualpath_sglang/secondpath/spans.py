"""Arithmetic on page numbers: runs of neighbours, and one transfer entry per run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """`pages` neighbouring pages, `local` first here and `remote` first there."""

    local: int
    remote: int
    pages: int


def coalesce(local: Sequence[int], remote: Sequence[int]) -> list[Span]:
    """Pairs of page numbers, in order, joined where both sides go up by one."""
    spans: list[Span] = []
    for here, there in zip(local, remote, strict=True):
        last = spans[-1] if spans else None
        if last and here == last.local + last.pages and there == last.remote + last.pages:
            spans[-1] = Span(last.local, last.remote, last.pages + 1)
        else:
            spans.append(Span(here, there, 1))
    return spans


def runs(numbers: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges without gaps."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
