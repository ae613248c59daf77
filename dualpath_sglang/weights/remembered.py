"""Digests of files that were read whole, known again by what the file system says of them.

One JSON file that only its owner can write: whoever could write to it could give a file the digest
of another. A file or folder that others can write to is not used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path

from dualpath_sglang.weights.files import Look

log = logging.getLogger("dualpath")

MOST = 4096
"""Files remembered; the oldest are forgotten."""
SETTLED_S = 3.0
"""A file changed so lately is not remembered: clocks of file systems are coarse, and another write
within the same tick would not show."""


def default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "dualpath"


class Remembered:
    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()
        self._file = self._folder / "weights.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process of this user at a time; at once where there is no place for the lock."""
        with contextlib.ExitStack() as held:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                log.warning("DualPath: digests of weights are not remembered: %s", error)
            yield

    def load(self) -> dict[Look, str]:
        """Empty where there is nothing to be trusted."""
        try:
            if not _private(os.lstat(self._folder)):
                log.warning("DualPath: others can write to %s: not used", self._folder)
                return {}
            fd = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, encoding="utf-8") as file:
                if not _private(os.fstat(fd)):
                    log.warning("DualPath: others can write to %s: not used", self._file)
                    return {}
                return {Look(*map(int, row[:5])): str(row[5]) for row in json.load(file)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, IndexError) as error:
            log.warning("DualPath: %s cannot be read: %s", self._file, error)
            return {}

    def save(self, found: Mapping[Look, str]) -> None:
        """Beside what is there. Best effort: it costs the next start its time."""
        limit = time.time_ns() - int(SETTLED_S * 1e9)
        fresh = {seen: text for seen, text in found.items() if seen.ctime_ns < limit}
        known = self.load()
        for seen in fresh:
            known.pop(seen, None)
        rows = [[*astuple(seen), text] for seen, text in [*known.items(), *fresh.items()]][-MOST:]
        try:
            if not _private(os.lstat(self._folder)):
                return
            fd, draft = tempfile.mkstemp(".tmp", "weights.", self._folder)  # for its owner only
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(rows, file)
            os.replace(draft, self._file)
        except OSError as error:
            log.warning("DualPath: digests of weights are not remembered: %s", error)


def _private(seen: os.stat_result) -> bool:
    return seen.st_uid == os.geteuid() and not seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
