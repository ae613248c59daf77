"""Where an output is cut: at the first stop string, or ended by the first matching pattern.

Text that may be the beginning of a stop string is held back, so what was sent is never taken back.
Patterns run here on RE2, in time linear in the text: an engine would search with a backtracking
matcher in the thread that serves everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import re2

from dualpath_sglang.contract.errors import BadRequest

MAX_STOPS = 32
"""Stop strings, and patterns, of one request (SGLang: as many)."""
MAX_STOP_CHARS = 4096
"""Of all stop strings of one request together."""
MAX_PATTERN_BYTES = 256
"""Of one pattern (SGLang: as long)."""
MAX_PROGRAM = 2000
"""Instructions of one compiled pattern: with the window they bound a search to some milliseconds,
whatever the pattern and the text are."""
WINDOW = 1024
"""Characters back from the end of the text in which a pattern is looked for."""


@dataclass(frozen=True)
class Stops:
    """`patterns`: compiled; a match is reported as the pattern's own text. `trim`: a stop string
    is left out of the text (what a pattern matches always stays in)."""

    strings: tuple[str, ...] = ()
    patterns: tuple[Any, ...] = ()
    trim: bool = True


def stop_strings(given: str | list[str] | None, field: str) -> tuple[str, ...]:
    """Raises BadRequest naming the entry."""
    strings = _listed(given, field)
    for name, text in strings:
        if not text:
            raise BadRequest(f"{name} is empty: every text would stop at once", field=name)
    if sum(len(text) for _, text in strings) > MAX_STOP_CHARS:
        raise BadRequest(
            f"{field}: the stop strings have more than {MAX_STOP_CHARS} characters", field=field
        )
    return tuple(text for _, text in strings)


def stop_patterns(given: str | list[str] | None, field: str) -> tuple[Any, ...]:
    """Raises BadRequest naming the entry."""
    return tuple(_compiled(name, text) for name, text in _listed(given, field))


def _listed(given: str | list[str] | None, field: str) -> list[tuple[str, str]]:
    if given is None or isinstance(given, str):
        return [] if given is None else [(field, given)]
    if len(given) > MAX_STOPS:
        raise BadRequest(f"{field} has {len(given)} entries, at most {MAX_STOPS}", field=field)
    return [(f"{field}[{index}]", text) for index, text in enumerate(given)]


def _compiled(field: str, pattern: str) -> Any:
    if not pattern:
        raise BadRequest(f"{field} is empty: every text would stop at once", field=field)
    if len(pattern.encode(errors="replace")) > MAX_PATTERN_BYTES:
        raise BadRequest(f"{field} has more than {MAX_PATTERN_BYTES} bytes", field=field)
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options=options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        hint = " (look-around and back-references are not supported)" if _is_python(pattern) else ""
        raise BadRequest(f"{field} is no RE2 pattern: {reason}{hint}", field=field) from error
    if compiled.programsize > MAX_PROGRAM:
        raise BadRequest(
            f"{field} is too large once compiled: {compiled.programsize} instructions, at most "
            f"{MAX_PROGRAM}: repeat less",
            field=field,
        )
    return compiled


def _is_python(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


class StopWatch:
    """Sees the text of one output as it grows. Feed it what one token adds, so that the cut does
    not depend on how tokens come."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._longest = max(map(len, stops.strings), default=0)
        self._held = ""
        self._seen = ""
        self.matched: str | None = None

    @property
    def held(self) -> str:
        return self._held

    def push(self, text: str) -> str:
        """What may be sent; once `matched` is set, all that there is."""
        if not text or self.matched is not None:
            return ""
        buffer, self._held = self._held + text, ""
        if (cut := self._cut(buffer)) is not None:
            return buffer[:cut]
        if self._stops.patterns:
            self._search(text)
        if self.matched is not None or not self._stops.strings:
            return buffer
        keep = self._kept(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _cut(self, buffer: str) -> int | None:
        """Where the text ends; of several stop strings the one that begins first counts."""
        found = [(at, stop) for stop in self._stops.strings if (at := buffer.find(stop)) >= 0]
        if not found:
            return None
        start, self.matched = min(found, key=lambda entry: entry[0])
        return start if self._stops.trim else start + len(self.matched)

    def _search(self, text: str) -> None:
        self._seen = (self._seen + text)[-WINDOW:]
        for pattern in self._stops.patterns:
            if pattern.search(self._seen) is not None:
                self.matched = str(pattern.pattern)
                return

    def _kept(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that is the beginning of a stop string."""
        longest = 0
        for stop in self._stops.strings:
            start = max(0, len(buffer) - len(stop) + 1)
            while (start := buffer.find(stop[0], start)) >= 0 and len(buffer) - start > longest:
                if stop.startswith(buffer[start:]):
                    longest = len(buffer) - start
                    break
                start += 1
        return longest
