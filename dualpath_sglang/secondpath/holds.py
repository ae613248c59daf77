"""Pages that a transfer still reads or writes. Their owner may free them; they wait here until the
transfer is over, so that no page is given out while bytes may still move.

    hold -> (owner frees: quarantined) -> release -> free again
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable


class PageHolds:
    """Thread-safe. Pages are numbers in this engine's host pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: Counter[int] = Counter()
        self._quarantined: set[int] = set()
        self._freeable: list[int] = []

    def hold(self, pages: Iterable[int]) -> None:
        with self._lock:
            self._holds.update(pages)

    def release(self, pages: Iterable[int]) -> None:
        """Undo one `hold` of each page; quarantined pages become freeable with their last."""
        with self._lock:
            for page in pages:
                self._holds[page] -= 1
                if self._holds[page] > 0:
                    continue
                del self._holds[page]
                if page in self._quarantined:
                    self._quarantined.discard(page)
                    self._freeable.append(page)

    def retain(self, pages: Iterable[int]) -> set[int]:
        """The owner frees `pages`: those that are held go into quarantine and are returned."""
        if not self._holds:
            return set()
        with self._lock:
            kept = {page for page in pages if self._holds[page] > 0}
            self._quarantined |= kept
            return kept

    def take_freeable(self) -> list[int]:
        """Pages whose quarantine is over; the caller frees them."""
        if not self._freeable:
            return []
        with self._lock:
            pages, self._freeable = self._freeable, []
            return pages

    @property
    def quarantined(self) -> frozenset[int]:
        """Freed by their owner, not free yet."""
        with self._lock:
            return frozenset(self._quarantined) | frozenset(self._freeable)

    @property
    def held(self) -> int:
        return len(self._holds)
