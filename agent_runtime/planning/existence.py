"""How many leading pages of a prompt are in the store.

    pages     0 1 2 3 4 5 6 7 8 ...
    known     x x x x                 confirmed within the last seconds
    asked           ^ ^ ^ ^ | ^ ^ ^   at once from the last known page on, then the rest at once
    counted   x x x x x x             up to the first page with an object missing

Each counted page has been confirmed with all its objects, so a hole in the middle (an evicted
page) ends the prefix. The first question goes as far as the session's history, which earlier turns
have written, and some pages further: most prompts are unknown behind that, or present in full.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from agent_runtime.planning.chain import Chain
from agent_runtime.planning.store_admin import MAX_KEYS, Objects
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.pages import KeyLayout

FIRST_PAGES = 32
"""Pages behind the history that are asked for with it."""


@dataclass(frozen=True)
class Known:
    """The leading `pages` of a chain whose last hash is `last` were all seen; the first of these
    confirmations expires at `expires`. A hash names all pages before it, so one comparison tells
    whether another prompt has the same."""

    pages: int
    last: str
    expires: float


NOTHING = Known(0, "", float("inf"))


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

    async def longest_prefix(self, chain: Chain, before: Known = NOTHING) -> Known:
        """The prefix that is there. `before`: what was found for an earlier prompt of the session;
        it saves looking at each of its pages again. Raises StoreFailure."""
        known = self._known(chain, before)
        # The last known page is asked for again: if it has gone, so may those before it.
        start = max(0, known.pages - 1)
        asked_at = self._clock.now()
        end = await self._confirm(chain, start)
        if end == start and known.pages:
            for page in chain.hashes(0, known.pages):
                self._expires.pop(page, None)
            start, known = 0, NOTHING
            end = await self._confirm(chain, 0)
        if end == 0:
            return NOTHING
        expires = min(known.expires, asked_at + self._ttl_s)
        return Known(end, chain.hashes(end - 1, end)[0], expires)

    def _known(self, chain: Chain, before: Known) -> Known:
        """What needs no question: `before` where it still holds, and known pages behind it."""
        now, n = self._clock.now(), len(chain)
        pages, expires = 0, float("inf")
        within = 0 < before.pages <= n and before.expires > now
        if within and chain.hashes(before.pages - 1, before.pages)[0] == before.last:
            pages, expires = before.pages, before.expires
        while pages < n:
            until = self._expires.get(chain.hashes(pages, pages + 1)[0], now)
            if until <= now:
                break
            pages, expires = pages + 1, min(expires, until)
        return Known(pages, "", expires)

    async def _confirm(self, chain: Chain, start: int) -> int:
        """The first page at or after `start` that is not whole in the store, else the length."""
        n = len(chain)
        first = min(n, max(chain.kept, start) + FIRST_PAGES)
        for end in (first, n):
            present = await self._whole(chain.hashes(start, end))
            start += present
            if start < end:
                break
        return start

    async def _whole(self, pages: list[str]) -> int:
        """How many leading pages of these have all their objects; the first ones are remembered."""
        keys = [key for page in pages for key in self.layout.object_keys(page)]
        parts = [keys[first : first + MAX_KEYS] for first in range(0, len(keys), MAX_KEYS)]
        found = [there for part in await _at_once(self._objects, parts) for there in part]
        per_page = len(self.layout.suffixes)
        present = found.index(False) // per_page if False in found else len(pages)
        self._remember(pages[:present])
        return present

    def _remember(self, pages: list[str]) -> None:
        expires = self._clock.now() + self._ttl_s
        for page in pages:
            self._expires[page] = expires
            self._expires.move_to_end(page)
        while len(self._expires) > self._max_known:
            self._expires.popitem(last=False)


async def _at_once(objects: Objects, parts: list[list[str]]) -> list[list[bool]]:
    """All answers; the first failure ends the other questions."""
    if len(parts) <= 1:
        return [await objects.exist(part) for part in parts]
    tasks = [asyncio.create_task(objects.exist(part)) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
