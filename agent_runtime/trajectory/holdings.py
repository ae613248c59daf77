"""What the engines still have in memory of each session, as far as the router can tell.

An engine evicts what was used longest ago, from the end of its prefix on. The router sees every
turn, so for each engine it keeps the same order and evicts as much:

    used last                          used first
    | s7 4,000 | s1 61,000 | ... | s4 9,000 -> 2,000 |      sum <= capacity

Prefixes that sessions share count once for each of them, so that more is taken for evicted than
is. An engine whose capacity is not known is believed to hold nothing: pages that are not there
would have to be read after all, by the wrong side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

E = TypeVar("E", bound=Hashable)
"""An engine."""
S = TypeVar("S", bound=Hashable)
"""A session."""


class EngineMemory(Generic[S]):
    """capacity: tokens of KV that the engine keeps, device and host together."""

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity
        self._tokens: OrderedDict[S, int] = OrderedDict()
        self.used = 0

    def resize(self, capacity: int) -> list[S]:
        """Sessions of which nothing is left."""
        self._capacity = capacity
        return self._evict()

    def touch(self, session: S, tokens: int) -> list[S]:
        """The first `tokens` tokens of the session were used just now, and those behind them are
        gone. Sessions of which nothing is left."""
        self.used += tokens - self._tokens.pop(session, 0)
        self._tokens[session] = tokens
        return self._evict()

    def keep(self, session: S, tokens: int) -> None:
        """What lies behind the first `tokens` tokens is no longer the session's."""
        held = self._tokens.get(session, 0)
        if held > tokens:
            self.used -= held - tokens
            self._tokens[session] = tokens

    def held(self, session: S) -> int:
        return self._tokens.get(session, 0)

    def forget(self, session: S) -> None:
        self.used -= self._tokens.pop(session, 0)

    def clear(self) -> list[S]:
        """Sessions of which something was left."""
        gone = list(self._tokens)
        self._tokens.clear()
        self.used = 0
        return gone

    def _evict(self) -> list[S]:
        gone: list[S] = []
        while self.used > self._capacity:
            oldest, tokens = next(iter(self._tokens.items()))
            cut = min(tokens, self.used - self._capacity)
            self.used -= cut
            if cut < tokens:
                self._tokens[oldest] = tokens - cut
            else:
                del self._tokens[oldest]
                gone.append(oldest)
        return gone


class Holdings(Generic[E, S]):
    """Of all engines. Its owner tells it of turns as they end."""

    def __init__(self, engines: Iterable[E]) -> None:
        self._memories: dict[E, EngineMemory[S]] = {engine: EngineMemory() for engine in engines}
        self._places: dict[S, set[E]] = {}

    def of(self, session: S, kept: int) -> Mapping[E, int]:
        """Leading tokens of the session that each engine holds, where the first `kept` tokens of
        its history go on."""
        places = self._places.get(session, ())
        return {e: min(kept, self._memories[e].held(session)) for e in places}

    def used(self, session: S, kept: int, tokens: Mapping[E, int]) -> None:
        """A turn that kept `kept` tokens of the history has ended, with so many on each of its
        engines."""
        for other in self._places.get(session, ()):
            self._memories[other].keep(session, kept)
        for engine, count in tokens.items():
            self._places.setdefault(session, set()).add(engine)
            self._gone(engine, self._memories[engine].touch(session, count))

    def resize(self, engine: E, capacity: int) -> None:
        self._gone(engine, self._memories[engine].resize(capacity))

    def clear(self, engine: E) -> None:
        """It was restarted or flushed."""
        self._gone(engine, self._memories[engine].clear())

    def forget(self, session: S) -> None:
        """It was deleted."""
        for engine in self._places.pop(session, ()):
            self._memories[engine].forget(session)

    def _gone(self, engine: E, sessions: Iterable[S]) -> None:
        for session in sessions:
            places = self._places[session]
            places.discard(engine)
            if not places:
                del self._places[session]
