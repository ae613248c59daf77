"""Whether a component is ready: one short, blocking look at a time."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

from agent_runtime.stack.component import HttpReady, LineReady, PortReady, Ready

PROBE_TIMEOUT_S = 5.0
"""SGLang's /health generates one token, which takes a while on a busy CPU."""


def is_ready(ready: Ready, log: Path | None, log_start: int) -> bool:
    """One look. `log_start` is where this run's output begins in the log file."""
    match ready:
        case HttpReady(url):
            return _http_ok(url)
        case PortReady(host, port):
            return _accepts(host, port)
        case LineReady(word):
            return log is not None and _has_line(log, log_start, word)


def tail(log: Path, start: int, lines: int) -> tuple[str, ...]:
    """The last lines written since `start`, each cut at 500 characters; reads 64 KiB at most."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - 65_536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line[:500] for line in text.splitlines()[-lines:])


def _has_line(log: Path, start: int, word: str) -> bool:
    with open(log, "rb") as file:
        file.seek(start)
        needle = word.encode()
        # An unfinished last line may still grow, so it does not count.
        return any(line.startswith(needle) and line.endswith(b"\n") for line in file)


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _http_ok(url: str) -> bool:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
