"""The weights that an engine loads, named from the disk while it loads them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from dualpath_sglang.contract.errors import WeightsUnreadable
from dualpath_sglang.weights.files import WeightFile, look, weight_files
from dualpath_sglang.weights.full import full_digest
from dualpath_sglang.weights.remembered import Remembered
from dualpath_sglang.weights.sampled import sampled_digest

Digest = Literal["sampled", "full"]
SCHEME = 1
"""Counts up when equal files get another digest."""


@dataclass(frozen=True)
class Source:
    """Where SGLang loads from: its `--model-path` and `--load-format`."""

    model_path: str
    load_format: str


@dataclass(frozen=True)
class Naming:
    """digest: how weights are read. name: given by the operator for the weights of the start, which
    are then not read; equal names promise equal weights."""

    digest: Digest = "sampled"
    name: str = ""

    def start(self, source: Source) -> Reading:
        """Raises WeightsUnreadable at once for weights that are not on this machine."""
        if self.name:
            return Reading.of_name(self.name)
        return self.read(source)

    def read(self, source: Source) -> Reading:
        """Raises WeightsUnreadable at once for weights that are not on this machine."""
        return Reading.of_files(weight_files(source.model_path, source.load_format), self.digest)


class Reading:
    """Under way in a thread of its own."""

    def __init__(self, files: tuple[WeightFile, ...], digest: Digest, name: str) -> None:
        self._files = files
        self._looks = look(files)
        self._pool = ThreadPoolExecutor(1, "dualpath-weights")
        self._named = self._pool.submit(_named, files, digest, name)
        self._pool.shutdown(wait=False)

    @classmethod
    def of_name(cls, name: str) -> Reading:
        return cls((), "sampled", name)

    @classmethod
    def of_files(cls, files: tuple[WeightFile, ...], digest: Digest) -> Reading:
        return cls(files, digest, "")

    def end(self) -> str:
        """What names the weights; called when they are loaded. Raises WeightsUnreadable, also for
        files that changed since the reading began: which state was loaded is then not known."""
        name = self._named.result()
        if look(self._files) != self._looks:
            raise WeightsUnreadable("the weights were written to while they were loaded")
        return name


def _named(files: tuple[WeightFile, ...], digest: Digest, name: str) -> str:
    if name:
        return f"named:{name}"
    if digest == "full":
        return f"full-{SCHEME}:{full_digest(files, Remembered())}"
    return f"sampled-{SCHEME}:{sampled_digest(files)}"
