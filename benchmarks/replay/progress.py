"""A progress bar on a terminal, plain lines elsewhere (logs of CI)."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

PLAIN_EVERY_S = 5.0


class Progress:
    """Counts turns towards a total. Use as a context manager."""

    def __init__(self, label: str, turns: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream if stream is not None else sys.stderr
        self._total = turns
        self._done = self._failed = self._unsent = 0
        self._ttfts = 0
        self._ttft_sum = 0.0
        self._began = self._last_line = time.monotonic()
        tty = self._stream.isatty()
        self._bar = tqdm(total=turns, desc=label, unit="turn", file=self._stream) if tty else None

    def turn_ended(self, ttft_ms: float | None) -> None:
        """`ttft_ms` None: the turn failed."""
        self._done += 1
        self._failed += ttft_ms is None
        self._ttfts += ttft_ms is not None
        self._ttft_sum += ttft_ms or 0.0
        self._show(1)

    def session_ended(self, turns_left: int) -> None:
        """The turns that a failed session no longer runs count as done."""
        if turns_left:
            self._done += turns_left
            self._unsent += turns_left
            self._show(turns_left)

    def _show(self, step: int) -> None:
        counts = ((self._failed, "failed"), (self._unsent, "not sent"))
        note = ", ".join(f"{count} {what}" for count, what in counts if count) or "no errors"
        note += f", mean TTFT {self._ttft_sum / self._ttfts:.0f} ms" if self._ttft_sum else ""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        now = time.monotonic()
        if self._done >= self._total or now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            passed = now - self._began
            line = f"{self._label}: {self._done}/{self._total} turns, {passed:.0f} s, {note}"
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
