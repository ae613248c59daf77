"""What a decode engine offers to prefill engines: pages of planned prefixes, as they become ready.

    reserve (slots known, held) -> ready (bytes are in, announced) -> done | lease over (let go)

The scheduler thread reserves, the store reader makes ready, the export server subscribes. Nothing
here touches SGLang. A page stays held from `reserve` until nobody can read it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.load import Key
from dualpath_sglang.secondpath.protocol import HASH_DIGITS, Alive, End, Message, Ready
from dualpath_sglang.secondpath.spans import runs

Send = Callable[[Message], None]
"""Gives a message to one connection; must neither block nor raise."""
LEASE_MARGIN_S = 5.0
"""P's clock for a lease starts when it receives it; a read that began in time may end later."""
REFUSED_ROOMS = 4096
NOT_OFFERED = "not_offered"


@dataclass
class _Offer:
    slot: int
    hash: str
    sum: str = ""
    is_ready: bool = False


@dataclass
class _Exchange:
    lease_until: float
    offers: dict[int, _Offer] = field(default_factory=dict)
    ended: str | None = None
    send: Send | None = None
    lo: int = 0
    hi: int = 0
    opened: bool = False


class ExportTable:
    """All exchanges of this engine. Thread-safe. Times are monotonic seconds."""

    def __init__(self, holds: PageHolds, lease_s: float) -> None:
        self._holds = holds
        self._lease_s = lease_s
        self._lock = threading.RLock()
        self._exchanges: dict[Key, _Exchange] = {}
        self._refused: dict[int, None] = {}

    # --- by the scheduler thread --------------------------------------------------------------

    def open(self, key: Key, now: float) -> None:
        """The engine has taken up the plan. A subscriber may have been here before."""
        with self._lock:
            self._refused.pop(key[0], None)
            self._get(key, now).opened = True

    def refuse(self, room: int) -> None:
        """The engine has this room's request and no pages to show for it: P need not wait."""
        with self._lock:
            self._refuse(room)
            for key, exchange in list(self._exchanges.items()):
                if key[0] == room and exchange.send is not None:
                    self.end(key, NOT_OFFERED)

    def reserve(
        self, key: Key, first: int, slots: Sequence[int], hashes: Sequence[str], now: float
    ) -> None:
        """Pages from `first` of the prompt are, or will be, in `slots`; a second call for a page
        moves it."""
        with self._lock:
            exchange = self._exchanges.get(key)
            if exchange is None or exchange.ended is not None:
                return
            exchange.lease_until = now + self._lease_s
            for page, (slot, name) in enumerate(zip(slots, hashes, strict=True), first):
                old = exchange.offers.get(page)
                if old is not None:
                    self._holds.release([old.slot])
                self._holds.hold([slot])
                exchange.offers[page] = _Offer(slot, name[:HASH_DIGITS])

    def end(self, key: Key, reason: str) -> None:
        """Nothing more becomes ready: empty reason when all did."""
        with self._lock:
            exchange = self._exchanges.get(key)
            if exchange is None or exchange.ended is not None:
                return
            exchange.ended = reason
            unready = [p for p, offer in exchange.offers.items() if not offer.is_ready]
            self._holds.release(exchange.offers.pop(p).slot for p in unready)
            if exchange.send is not None:
                exchange.send(End(*key, reason))

    def forget(self, key: Key, reason: str) -> None:
        """This engine's request is over. What P was told of stays until P is done with it."""
        self.end(key, reason)
        with self._lock:
            exchange = self._exchanges.get(key)
            if exchange is not None and exchange.send is None:
                self._drop(key)

    def expire(self, now: float) -> int:
        """Let go of what nobody asked for or gave back in time; number of exchanges."""
        with self._lock:
            late = [
                key
                for key, exchange in self._exchanges.items()
                if now > exchange.lease_until + LEASE_MARGIN_S
            ]
            for key in late:
                self._drop(key)
            return len(late)

    # --- by the thread that reads the store ---------------------------------------------------

    def ready(self, key: Key, pages: Sequence[int], sums: Sequence[str], now: float) -> None:
        """The bytes of reserved `pages` are in. sums: one for each page, or none."""
        with self._lock:
            exchange = self._exchanges.get(key)
            if exchange is None or exchange.ended is not None:
                return
            known = [p for p in pages if p in exchange.offers]
            for page, text in zip(pages, sums or [""] * len(pages), strict=True):
                if page in exchange.offers:
                    exchange.offers[page].is_ready = True
                    exchange.offers[page].sum = text
            exchange.lease_until = now + self._lease_s
            self._announce(key, exchange, known)

    # --- by the export server -----------------------------------------------------------------

    def want(self, key: Key, lo: int, hi: int, send: Send, now: float) -> None:
        """Tell `send` of pages [lo, hi) from now on, first of those that are ready already."""
        with self._lock:
            exchange = self._get(key, now)
            exchange.send, exchange.lo, exchange.hi = send, lo, hi
            exchange.lease_until = now + self._lease_s
            ready = sorted(p for p, offer in exchange.offers.items() if offer.is_ready)
            self._announce(key, exchange, ready)
            if exchange.ended is None and key[0] in self._refused:
                exchange.ended = NOT_OFFERED
            if exchange.ended is not None:
                send(End(*key, exchange.ended))

    def done(self, key: Key) -> None:
        """P reads nothing of this exchange any more."""
        with self._lock:
            if key in self._exchanges:
                self.end(key, "done")
                self._drop(key)

    def gone(self, send: Send) -> None:
        """The connection broke. Reads may still run, so pages stay until their lease is over."""
        with self._lock:
            for key, exchange in list(self._exchanges.items()):
                if exchange.send is send:
                    exchange.send = None
                    if not exchange.opened:
                        del self._exchanges[key]

    def say_alive(self) -> None:
        """Tell subscribers that wait that this engine still works on their pages."""
        with self._lock:
            for key, exchange in self._exchanges.items():
                if exchange.opened and exchange.ended is None and exchange.send is not None:
                    exchange.send(Alive(*key))

    # --- questions ----------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Exchanges that hold pages."""
        with self._lock:
            return sum(1 for exchange in self._exchanges.values() if exchange.offers)

    def __contains__(self, key: Key) -> bool:
        return key in self._exchanges

    # --- under the lock -----------------------------------------------------------------------

    def _get(self, key: Key, now: float) -> _Exchange:
        found = self._exchanges.get(key)
        if found is None:
            found = self._exchanges[key] = _Exchange(now + self._lease_s)
        return found

    def _announce(self, key: Key, exchange: _Exchange, pages: Sequence[int]) -> None:
        if exchange.send is None:
            return
        wanted = [p for p in pages if exchange.lo <= p < exchange.hi]
        for run in runs(wanted):
            offers = [exchange.offers[p] for p in run]
            sums = tuple(offer.sum for offer in offers) if offers[0].sum else ()
            slots = tuple(offer.slot for offer in offers)
            hashes = tuple(offer.hash for offer in offers)
            exchange.send(Ready(*key, run.start, slots, hashes, sums, self._lease_s))

    def _refuse(self, room: int) -> None:
        self._refused[room] = None
        while len(self._refused) > REFUSED_ROOMS:
            self._refused.pop(next(iter(self._refused)))

    def _drop(self, key: Key) -> None:
        """Whoever asks for it later is told so at once."""
        self._refuse(key[0])
        exchange = self._exchanges.pop(key)
        self._holds.release(offer.slot for offer in exchange.offers.values())
