"""Server-sent events from chunks of bytes."""

from __future__ import annotations


class SseParser:
    """Collects chunks, however they are cut, and gives back whole events.

    Own buffer instead of a stream's readline: a `turn.done` with a long output is one line that
    exceeds the usual line limits.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """(event, data) of each event that is now complete; the name is `message` if not given."""
        *blocks, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        events = []
        for block in blocks:
            name, data = "message", []
            for line in block.decode("utf-8").split("\n"):
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if key == "event":
                    name = value
                elif key == "data":
                    data.append(value)
            if data:
                events.append((name, "\n".join(data)))
        return events
