"""Room that is taken and given back, and who is told when some is free again."""

from __future__ import annotations

from collections.abc import Callable

Wake = Callable[[float], None]


class Room:
    """Tokens. What is larger than the whole gets in when nothing else is in."""

    __slots__ = ("_waiting", "capacity", "left", "lowest")

    def __init__(self, capacity: float) -> None:
        self.capacity = self.left = self.lowest = capacity
        self._waiting: dict[Wake, None] = {}

    @property
    def idle(self) -> bool:
        return self.left == self.capacity

    def has(self, tokens: float) -> bool:
        return tokens <= self.left or self.left == self.capacity

    def take(self, tokens: float) -> None:
        self.left -= tokens
        self.lowest = min(self.lowest, self.left)

    def give(self, now: float, tokens: float) -> None:
        """Gives back and wakes everybody who waits, in the order in which they began to."""
        self.left += tokens
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for wake in waiting:
                wake(now)

    def wait(self, wake: Wake) -> None:
        """`wake(now)` once, at the next `give`."""
        self._waiting[wake] = None
