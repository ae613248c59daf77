"""The best engines of one role, in order, while a pass puts turns on them.

In a fleet of a thousand a turn cannot look at every engine. A placement makes one engine of each
role worse and no other better, so the best `width` after `t` placements are among the best
`width + t` from before: these are listed once for a pass, and a placed engine moves back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from agent_runtime.scheduling.view import Amounts, Flags

TIE_PART, TIE_S = 0.02, 0.001
"""Predictions that differ by less are equally good."""
TOKEN_S, ROW_S = 1e-9, 1e-13
"""What a token and a row add to a key, so that they order what is equally good and no more."""


def good_enough(least: float) -> float:
    return least * (1 + TIE_PART) + TIE_S


class Shortlist:
    """rows: at most `size` of those marked, best first.

    seconds: a prediction for every row. tok: tokens of every row, which order rows that are
    equally fast, before their numbers.
    """

    def __init__(self, seconds: Amounts, tok: Amounts, marked: Flags, size: int) -> None:
        seconds = np.where(marked, seconds, np.inf)
        self._equal = good_enough(float(seconds.min(initial=np.inf)))
        keys = np.maximum(seconds, self._equal) + tok * TOKEN_S + np.arange(len(tok)) * ROW_S
        rows = keys.argpartition(size)[:size] if len(keys) > size else np.arange(len(keys))
        rows = rows[keys[rows].argsort()]
        rows = rows[marked[rows]]
        self.rows: list[int] = rows.tolist()
        self._keys: list[float] = keys[rows].tolist()

    def move(self, row: int, seconds: float, tok: float) -> None:
        """`row` has a new prediction and new tokens."""
        if row not in self.rows:
            return
        at = self.rows.index(row)
        del self.rows[at], self._keys[at]
        key = max(seconds, self._equal) + tok * TOKEN_S + row * ROW_S
        at = bisect_left(self._keys, key)
        self.rows.insert(at, row)
        self._keys.insert(at, key)

    def first(self, count: int, fits: Callable[[int], bool]) -> list[int]:
        """The best `count` rows that fit."""
        found: list[int] = []
        for row in self.rows:
            if fits(row):
                found.append(row)
                if len(found) == count:
                    break
        return found
