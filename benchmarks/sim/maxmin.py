"""Flows over several links at once, shared max-min fairly: exact, for small clusters.

No flow can get more without taking from one that has no more than it. A flow may also want no more
than `demand` bytes/s. The rates are found by filling: every link offers its flows an equal share of
what is left; a link whose flows all have their smallest offer there is a bottleneck, and its flows
are settled. Each change costs a pass over all flows, so this is for up to a few thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.sim.loop import Action, Loop, Phase

WIDTH = 4
"""Links of one flow at most."""
SLACK_BYTES = 1.0
"""A flow with no more left has ended."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def max_min(rates: Floats, links: Ints, demand: Floats) -> Floats:
    """Bytes/s of every flow.

    rates: of the links, the last of which has no limit. links: [flows, WIDTH], filled up with the
    number of that last link. demand: of the flows.
    """
    flows = len(demand)
    given = np.zeros(flows)
    left = rates.copy()
    open_ = np.arange(flows)
    while len(open_):
        over = links[open_]
        count = np.bincount(over.ravel(), minlength=len(rates))
        share = np.maximum(left, 0.0) / np.maximum(count, 1)
        share[-1] = np.inf
        offers = share[over]
        offer = np.minimum(offers.min(axis=1), demand[open_])
        smallest = np.full(len(rates), np.inf)
        np.minimum.at(smallest, over.ravel(), np.repeat(offer, WIDTH))
        bottleneck = smallest >= share
        bottleneck[-1] = False
        settled = (offer >= demand[open_]) | bottleneck[over].any(axis=1)
        given[open_[settled]] = offer[settled]
        np.subtract.at(left, over[settled].ravel(), np.repeat(offer[settled], WIDTH))
        left[-1] = np.inf
        open_ = open_[~settled]
    return given


class Network:
    """Links of fixed rate, in bytes/s, numbered from 0, and the flows that are under way."""

    def __init__(self, loop: Loop, names: Sequence[str], rates: Sequence[float]) -> None:
        for name, rate in zip(names, rates, strict=True):
            if not rate > 0:
                raise ValueError(f"{name}: a link's rate must be above 0 bytes/s, not {rate}")
        self.names = list(names)
        self.rates = np.array([*rates, np.inf])
        self.carried = np.zeros(len(self.rates))
        """Bytes over each link up to the last change; the last entry means nothing."""
        self._loop = loop
        self._none = len(rates)
        self._count = 0
        self._links = np.full((64, WIDTH), self._none, np.int64)
        self._left, self._rate, self._demand = np.zeros(64), np.zeros(64), np.zeros(64)
        self._done: list[tuple[Action | None, Any]] = []
        self._since = 0.0
        self._asked = False
        self._version = 0

    @property
    def flows(self) -> int:
        return self._count

    def start(
        self,
        now: float,
        links: Sequence[int],
        size: float,
        done: Action | None,
        argument: Any = None,
        demand: float = np.inf,
    ) -> None:
        """A flow of `size` bytes over different `links`; `done(time, argument)` at its end."""
        self.settle(now)
        i = self._count
        if i == len(self._left):
            self._grow()
        self._links[i] = self._none
        self._links[i, : len(links)] = links
        self._left[i], self._rate[i], self._demand[i] = size, 0.0, demand
        self._done.append((done, argument))
        self._count += 1
        self._ask(now)

    def settle(self, now: float) -> None:
        """Brings the flows and the counters up to `now`."""
        passed, self._since = now - self._since, now
        if passed > 0 and self._count:
            n = self._count
            moved = self._rate[:n] * passed
            self._left[:n] -= moved
            np.add.at(self.carried, self._links[:n].ravel(), np.repeat(moved, WIDTH))

    def _ask(self, now: float) -> None:
        if not self._asked:
            self._asked = True
            self._loop.at(now, Phase.RATES, self._share)

    def _share(self, now: float, _: Any) -> None:
        """New rates, when everything else at this time has happened."""
        self._asked = False
        self._version += 1
        n = self._count
        if not n:
            return
        self.settle(now)
        self._rate[:n] = max_min(self.rates, self._links[:n], self._demand[:n])
        due = now + float((np.maximum(self._left[:n], 0.0) / self._rate[:n]).min())
        self._loop.at(due, Phase.LINK, self._fire, self._version)

    def _fire(self, now: float, version: int) -> None:
        if version != self._version:
            return
        self.settle(now)
        ended = []
        for i in np.flatnonzero(self._left[: self._count] <= SLACK_BYTES)[::-1].tolist():
            ended.append(self._done[i])
            self._count -= 1
            last = self._count
            self._done[i] = self._done[last]
            self._done.pop()
            for column in (self._links, self._left, self._rate, self._demand):
                column[i] = column[last]
        self._ask(now)
        for done, argument in reversed(ended):
            if done is not None:
                done(now, argument)

    def _grow(self) -> None:
        more = len(self._left)
        none = np.full((more, WIDTH), self._none, np.int64)
        self._links = np.concatenate((self._links, none))
        self._left, self._rate, self._demand = (
            np.concatenate((column, np.zeros(more)))
            for column in (self._left, self._rate, self._demand)
        )
