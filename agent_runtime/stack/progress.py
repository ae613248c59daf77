"""The start of a stack on a terminal: one line per component, or plain lines in a log."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from agent_runtime.stack.status import Event

DONE = ("ready", "exited", "failed", "stopped")


class Progress:
    """Shows events. On a terminal the lines are redrawn in place until the stack is up."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, float]] = {}
        self._drawn = 0
        self._began = time.monotonic()
        self._finished = threading.Event()
        if self._live:
            threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._live and not self._finished.is_set() and not event.detail:
                self._note(event)
                self._draw()
            else:
                self._line(event)

    def finish(self) -> None:
        """The table stays as it is; later events are plain lines below it."""
        with self._lock:
            self._finished.set()

    def _note(self, event: Event) -> None:
        if event.component:
            self._rows[event.component] = (event.state, event.at_s)
        elif event.state != "starting":
            self._finished.set()

    def _line(self, event: Event) -> None:
        name = event.component or "stack"
        text = f"[{event.at_s:6.1f} s] {name:<12} {event.state}"
        text += f": {event.detail}" if event.detail else ""
        text += f"\n    likely cause: {event.cause}" if event.cause else ""
        text += "".join(f"\n    | {line}" for line in event.lines)
        self._out.write(text + "\n")
        self._out.flush()
        # What was drawn above is no longer the end of the screen.
        self._drawn = 0

    def _draw(self) -> None:
        now = time.monotonic() - self._began
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        rows = []
        for name, (state, since) in self._rows.items():
            seconds = since if state in DONE else now
            rows.append(f"\x1b[2K  {name:<12} {state:<10} {seconds:6.1f} s\n")
        self._out.write(up + "".join(rows))
        self._out.flush()
        self._drawn = len(rows)

    def _tick(self) -> None:
        while not self._finished.wait(0.5):
            with self._lock:
                if self._rows and not self._finished.is_set():
                    self._draw()
