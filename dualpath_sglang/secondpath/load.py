"""One prefetch operation on its way into the host pool: which page comes from where, and is it in.

    WAIT_PEER --take_peer--> FLYING --landed--> DONE
        |                      |-----refused--> WAIT_STORE   (no use, but the slot is fine)
        |                      |-----lost-----> SUSPECT      (bytes may still arrive in that slot)
    leave_peer                                     | replaced: another slot
        v                                          v
    WAIT_STORE --take_store--> FLYING ...      WAIT_STORE
                                  '--missing--> ABSENT       (the prefix ends before this page)

Pages count from the operation's first. What is usable is the longest prefix that is DONE.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dualpath_sglang.contract.plan import Plan
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.sglang_types import PrefetchOperation

Key = tuple[int, str]
"""Bootstrap room and plan id: how P and D know one exchange."""


class State(IntEnum):
    WAIT_PEER = 0
    WAIT_STORE = 1
    FLYING = 2
    SUSPECT = 3
    DONE = 4
    ABSENT = 5


@dataclass(frozen=True)
class Origin:
    """Where an operation starts in its prompt (pages), and the plan it follows, if any.

    give_up_at: the plan's own deadline, monotonic seconds.
    """

    first_page: int
    key: Key | None = None
    plan: Plan | None = None
    give_up_at: float = float("inf")


class Load:
    """Thread-safe. `owner` is SGLang's operation; it is not looked into here."""

    def __init__(
        self,
        owner: PrefetchOperation,
        origin: Origin,
        hashes: Sequence[str],
        slots: Sequence[int],
        peer_pages: int,
        holds: PageHolds,
        now: float,
    ) -> None:
        """`slots`: page numbers in the host pool, one per page. The first `peer_pages` pages are
        pulled from the peer, the others read from the store. `now`: monotonic seconds."""
        self.owner = owner
        self.origin = origin
        self.hashes = tuple(hashes)
        self.started_at = now
        self.progress_at = now
        self.fallback = ""
        self.left: Counter[str] = Counter()
        self.on_landed: Callable[[Load, list[int]], None] | None = None
        """Called by the thread that landed pages, outside the lock."""
        self.on_store_work: Callable[[], None] | None = None
        """Called when pages are to be read from the store that were not before."""
        self._holds = holds
        self._slots = list(slots)
        count = len(self._slots)
        peer_pages = min(peer_pages, count)
        self._states = [State.WAIT_PEER] * peer_pages + [State.WAIT_STORE] * (count - peer_pages)
        self._by_peer = [False] * count
        self._peer_flying = 0
        self._end = count
        self._counts = Counter(self._states)
        self._sealed = False
        self._lock = threading.Lock()

    # --- taken and given back by the threads that move bytes ----------------------------------

    def take_peer(self, pages: Iterable[int]) -> list[int]:
        """Those of `pages` that the peer may still deliver; they are in flight from now on."""
        with self._lock:
            taken = [p for p in pages if self._is(p, State.WAIT_PEER)]
            self._peer_flying += len(taken)
            return self._take(taken)

    def take_store(self, most: int) -> list[int]:
        """The next at most `most` pages to read from the store, ascending."""
        with self._lock:
            waiting = (p for p in range(self._end) if self._states[p] == State.WAIT_STORE)
            taken = [] if self._sealed else [p for p, _ in zip(waiting, range(most), strict=False)]
            return self._take(taken)

    def landed(self, pages: Sequence[int], *, by_peer: bool, now: float) -> None:
        """The bytes are in. After `seal` that comes too late and changes nothing."""
        with self._lock:
            counted = not self._sealed
        # Before they count: the scheduler thread ends the exchange once all pages have.
        if counted and self.on_landed is not None:
            self.on_landed(self, list(pages))
        with self._lock:
            self._peer_flying -= len(pages) if by_peer else 0
            self._give_back(pages, State.DONE)
            self.progress_at = now
            for page in pages:
                self._by_peer[page] = by_peer

    def refused(self, pages: Sequence[int], reason: str, now: float) -> None:
        """The peer's are of no use, and no byte of them is under way: the store has the right
        ones."""
        with self._lock:
            self._peer_flying -= len(pages)
            self._give_back(pages, State.WAIT_STORE)
            self.fallback = self.fallback or reason
            self.progress_at = now
        if self.on_store_work is not None:
            self.on_store_work()

    def lost(self, pages: Sequence[int], reason: str, *, by_peer: bool) -> list[int]:
        """A transfer failed and may still write: the slots stay held. Returns the slots; the
        caller releases the hold when nothing can arrive any more."""
        with self._lock:
            self._peer_flying -= len(pages) if by_peer else 0
            for page in pages:
                self._set(page, State.SUSPECT)
            self.fallback = self.fallback or reason
            return [self._slots[p] for p in pages]

    def missing(self, pages: Sequence[int], reason: str) -> None:
        """The store does not have them: the prefix ends before the first."""
        with self._lock:
            self._give_back(pages, State.ABSENT)
            self._cut(min(pages))
            self.fallback = self.fallback or reason

    # --- steered by the scheduler thread ------------------------------------------------------

    def leave_peer(self, reason: str, pages: Iterable[int] | None = None) -> int:
        """Read from the store what the peer has not delivered (all, or of `pages`); how many."""
        with self._lock:
            asked = range(self._end) if pages is None else pages
            left = [p for p in asked if self._is(p, State.WAIT_PEER)]
            for page in left:
                self._set(page, State.WAIT_STORE)
            if left:
                self.fallback = self.fallback or reason
                self.left[reason] += len(left)
        if left and self.on_store_work is not None:
            self.on_store_work()
        return len(left)

    def suspects(self) -> list[int]:
        with self._lock:
            if not self._counts[State.SUSPECT]:
                return []
            return [p for p in range(self._end) if self._states[p] == State.SUSPECT]

    def replace(self, slots: Mapping[int, int]) -> list[int]:
        """Give suspect pages other slots; returns the old ones, which the caller frees."""
        with self._lock:
            old = [self._slots[page] for page in slots]
            for page, slot in slots.items():
                self._slots[page] = slot
                self._set(page, State.WAIT_STORE)
        if self.on_store_work is not None:
            self.on_store_work()
        return old

    def give_up(self, page: int) -> None:
        """No slot for this page: the prefix ends before it."""
        with self._lock:
            self._set(page, State.ABSENT)
            self._cut(page)

    def seal(self, reason: str = "") -> int:
        """No page counts from now on; number of usable pages. Idempotent."""
        with self._lock:
            self._sealed = True
            if reason:
                self.fallback = self.fallback or reason
            return self._done_prefix()

    # --- questions ----------------------------------------------------------------------------

    @property
    def pages(self) -> int:
        return len(self._slots)

    @property
    def settled(self) -> bool:
        """Nothing more will become usable."""
        with self._lock:
            return self._sealed or self._counts[State.DONE] == self._end

    @property
    def done_pages(self) -> int:
        with self._lock:
            return self._done_prefix()

    def waits(self, state: State) -> bool:
        with self._lock:
            return not self._sealed and self._counts[state] > 0

    @property
    def peer_is_over(self) -> bool:
        """Nothing is, or will be, read from the peer."""
        with self._lock:
            waits = not self._sealed and self._counts[State.WAIT_PEER] > 0
            return not waits and self._peer_flying == 0

    @property
    def is_pulled(self) -> bool:
        """Is a read from the peer under way?"""
        with self._lock:
            return self._peer_flying > 0

    def peer_pages(self) -> int:
        """Usable pages that the peer delivered."""
        with self._lock:
            return sum(self._by_peer[: self._done_prefix()])

    def slots(self, pages: Iterable[int]) -> list[int]:
        with self._lock:
            return [self._slots[p] for p in pages]

    def all_slots(self) -> list[int]:
        with self._lock:
            return list(self._slots)

    # --- under the lock -----------------------------------------------------------------------

    def _is(self, page: int, state: State) -> bool:
        return not self._sealed and 0 <= page < self._end and self._states[page] == state

    def _take(self, pages: list[int]) -> list[int]:
        for page in pages:
            self._set(page, State.FLYING)
        self._holds.hold(self._slots[p] for p in pages)
        return pages

    def _give_back(self, pages: Sequence[int], state: State) -> None:
        for page in pages:
            self._set(page, state)
        self._holds.release(self._slots[p] for p in pages)

    def _set(self, page: int, state: State) -> None:
        if page < self._end:
            self._counts[self._states[page]] -= 1
            self._counts[state] += 1
        self._states[page] = state

    def _cut(self, page: int) -> None:
        if page < self._end:
            self._end = page
            self._counts = Counter(self._states[:page])

    def _done_prefix(self) -> int:
        undone = (i for i in range(self._end) if self._states[i] != State.DONE)
        return next(undone, self._end)
