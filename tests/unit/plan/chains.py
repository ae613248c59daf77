"""A chain of pages that is simply listed."""

from __future__ import annotations

from collections.abc import Sequence


class Listed:
    """`kept`: of the pages those of the session's history."""

    def __init__(self, pages: Sequence[str], kept: int = 0) -> None:
        self.pages, self.kept = list(pages), kept
        self.asked = 0

    def __len__(self) -> int:
        return len(self.pages)

    def hashes(self, first: int, last: int) -> list[str]:
        self.asked += last - first
        return self.pages[first:last]
