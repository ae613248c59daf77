"""What names an engine's weights from its start on, through every update. Pure.

start                what was read from the disk, or the operator's name
from disk            the request's version, else what was read from the new folder
from elsewhere       the request's version, else random
in the middle        random: an update in several calls, or one that failed
"""

from __future__ import annotations

import secrets
from collections.abc import Callable


class WeightsVersion:
    """`now` is equal on two engines only where their weights are."""

    def __init__(self, start: str, random: Callable[[], str] = lambda: secrets.token_hex(16)):
        self.now = start
        self._start = start
        self._random = random

    def labelled(self, label: str) -> str:
        """A version is the operator's word for a state of *these* weights: two models that start
        from different ones may both have a version 1."""
        self.now = f"{self._start}+{label}"
        return self.now

    def read(self, name: str) -> str:
        """The weights are those of a folder, whatever they were before."""
        self.now = self._start = name
        return name

    def unknown(self) -> str:
        self.now = f"random:{self._random()}"
        return self.now
