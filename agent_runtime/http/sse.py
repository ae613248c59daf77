"""Server-sent events as bytes."""

from __future__ import annotations

from typing import Any

import orjson

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b"\n"
"""An empty line dispatches nothing, and every reader of events skips it."""
_LINE_ENDS = ("\u0085", "\u2028", "\u2029")
_ESCAPED = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in _LINE_ENDS)


def event(name: str, tree: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + on_one_line(orjson.dumps(tree)) + b"\n\n"


def on_one_line(json: bytes) -> bytes:
    """JSON in which no character ends a line for any reader: Unicode has more line ends than
    JSON escapes, and all three can only stand within strings."""
    for raw, escaped in _ESCAPED:
        if raw in json:
            json = json.replace(raw, escaped)
    return json
