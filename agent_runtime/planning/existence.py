"""How many leading pages of a prompt are in the store.

    pages     0 1 2 3 4 5 6 7 8 ...
    known     x x x x                 confirmed within the last seconds
    asked           ^ ^ ^ | ^ ^ ^ ^   from the last known page on, in growing batches
    counted   x x x x x x             up to the first page with an object missing

Each counted page has been confirmed with all its objects, so a hole in the middle (an evicted
page) ends the prefix. The batches grow because most prompts are either unknown, where one small
query shows it, or present in full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from agent_runtime.planning.store_admin import MAX_KEYS, Objects
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.pages import KeyLayout

FIRST_BATCH_PAGES = 32


class Existence:
    """Asks for the objects of one key layout and remembers pages for `ttl_s` seconds, at most
    `max_known` of them. Only presence is remembered: a page that is missing now may be on its way.
    """

    def __init__(
        self, objects: Objects, layout: KeyLayout, *, clock: Clock, ttl_s: float, max_known: int
    ) -> None:
        self.layout = layout
        self._objects = objects
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_known = max_known
        self._expires: OrderedDict[str, float] = OrderedDict()

    @property
    def known(self) -> int:
        """Pages remembered, expired ones included."""
        return len(self._expires)

    async def longest_prefix(self, hashes: Sequence[str]) -> int:
        """`hashes`: the chain of a prompt's pages. Raises StoreFailure."""
        now = self._clock.now()
        known = 0
        while known < len(hashes) and self._expires.get(hashes[known], now) > now:
            known += 1
        # The last known page is asked for again: if it has gone, so may have those before it.
        start = max(0, known - 1)
        end = await self._confirm(hashes, start)
        if end == start and known:
            for page in hashes[:known]:
                self._expires.pop(page, None)
            end = await self._confirm(hashes, 0)
        return end

    async def _confirm(self, hashes: Sequence[str], start: int) -> int:
        """The first page at or after `start` that is not whole in the store, else the length."""
        objects_per_page = len(self.layout.suffixes)
        most = max(1, MAX_KEYS // objects_per_page)
        size = min(FIRST_BATCH_PAGES, most)
        while start < len(hashes):
            batch = hashes[start : start + size]
            present = await self._whole(batch)
            self._remember(batch[:present])
            start += present
            if present < len(batch):
                break
            size = min(2 * size, most)
        return start

    async def _whole(self, batch: Sequence[str]) -> int:
        """How many leading pages of the batch have all their objects."""
        keys = [key for page in batch for key in self.layout.object_keys(page)]
        found: list[bool] = []
        for first in range(0, len(keys), MAX_KEYS):
            found += await self._objects.exist(keys[first : first + MAX_KEYS])
        objects_per_page = len(self.layout.suffixes)
        return found.index(False) // objects_per_page if False in found else len(batch)

    def _remember(self, pages: Sequence[str]) -> None:
        expires = self._clock.now() + self._ttl_s
        for page in pages:
            self._expires[page] = expires
            self._expires.move_to_end(page)
        while len(self._expires) > self._max_known:
            self._expires.popitem(last=False)
