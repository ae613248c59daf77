"""The unix socket of the renderer: lines in, lines out, many requests under way at once."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.contract.render import LINE_LIMIT, RenderError, encode_reply

_THREADS = 4
_IN_FLIGHT = 32
"""Requests under way per connection; beyond that the socket is not read."""
_PATH_LIMIT = 107
"""Bytes that fit into a unix socket address on Linux."""


class LineServer:
    """Answers every line with `answer(line)`, called in a small thread pool, in any order."""

    def __init__(self, path: Path, answer: Callable[[bytes], bytes]) -> None:
        self._path = path
        self._answer = answer
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="render")
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises StartupError when the path is unfit or another server answers on it."""
        claim_socket_path(self._path)
        # The reader's limit does not count the newline.
        self._server = await asyncio.start_unix_server(
            self._connected, str(self._path), limit=LINE_LIMIT - 1
        )
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Closes the socket and every connection; the socket file is gone afterwards."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._path.unlink(missing_ok=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = asyncio.Semaphore(_IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as requests:
                while (line := await _read_line(reader)) != b"":
                    await room.acquire()
                    requests.create_task(self._handle(line, writer, room))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _handle(
        self, line: bytes | None, writer: asyncio.StreamWriter, room: asyncio.Semaphore
    ) -> None:
        try:
            writer.write(await self._reply_to(line))
            await writer.drain()
        finally:
            room.release()

    async def _reply_to(self, line: bytes | None) -> bytes:
        if line is None:
            message = f"the line is over the limit of {LINE_LIMIT} bytes: send less at once"
            return encode_reply(None, RenderError("too_large", message))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._answer, line)


async def _read_line(reader: asyncio.StreamReader) -> bytes | None:
    """The next line, b"" at the end, None for a line over the limit (which is skipped)."""
    fits = True
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as err:
            fits = False
            await reader.readexactly(err.consumed)
        except asyncio.IncompleteReadError:
            return b""
        else:
            return line if fits else None


def claim_socket_path(path: Path) -> None:
    """Makes way for a socket at `path`: a dead socket is removed, anything else refused."""
    if len(str(path).encode()) > _PATH_LIMIT:
        raise StartupError(f"socket path {path} is longer than {_PATH_LIMIT} bytes: use a shorter")
    if not path.parent.is_dir():
        raise StartupError(f"the folder of socket {path} does not exist: create it first")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise StartupError(f"{path} exists and is no socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as err:
            raise StartupError(f"socket {path} is there and cannot be probed: {err}") from err
    raise StartupError(f"another process listens on {path}: stop it or choose another path")
