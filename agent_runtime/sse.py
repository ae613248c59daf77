"""Server-sent events, read at bytes: a line ends at CR or LF and nowhere else.

Python's `splitlines`, and what is built on it, also ends lines at U+0085, U+2028 and U+2029, which
the text of a model may hold.
"""

from __future__ import annotations

Event = tuple[str, bytes]
"""Its name (`message` where the stream gave none) and its data."""


class SseParser:
    """Collects chunks, however they are cut, and gives back whole events.

    Own buffer instead of a stream's `readline`: an event with a long output is one line that
    exceeds the usual limits.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ended_with_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are complete now. Comments and events without data are left out."""
        if b"\r" in chunk or self._ended_with_cr:
            chunk = self._with_lf(chunk)
        if self._parts and chunk:
            # Joined once they have an end: a long event comes in many chunks.
            ends = self._parts[-1].endswith(b"\n") and chunk.startswith(b"\n")
            self._parts.append(chunk)
            if not ends and b"\n\n" not in chunk:
                return []
            chunk = b"".join(self._parts)
            self._parts.clear()
        *blocks, rest = chunk.split(b"\n\n")
        if rest:
            self._parts.append(rest)
        return [event for block in blocks if (event := _event(block)) is not None]

    def _with_lf(self, chunk: bytes) -> bytes:
        """The chunk with LF at the end of each line, also where CR LF was cut in two."""
        if self._ended_with_cr:
            chunk = chunk.removeprefix(b"\n")
        self._ended_with_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _event(block: bytes) -> Event | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return "message", block[6:]  # all that engines send
    name, data = "message", []
    for line in block.split(b"\n"):
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value.decode(errors="replace")
    return (name, b"\n".join(data)) if data else None
