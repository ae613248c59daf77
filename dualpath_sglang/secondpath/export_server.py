"""The port at which a decode engine answers prefill engines (`protocol`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.secondpath.exports import ExportTable, Send
from dualpath_sglang.secondpath.protocol import MAX_LINE, Done, Hello, Message, ProtocolError, Want
from dualpath_sglang.secondpath.wire import Line, LoopThread

log = logging.getLogger("dualpath")

ALIVE_S = 1.0
MAX_PAGE = 2**31


class ExportServer:
    """Runs in its own thread from construction on; reads only `ExportTable`."""

    def __init__(self, table: ExportTable, hello: Hello, host: str, port: int) -> None:
        """`port` 0: any free one. Raises StartupError when it cannot listen."""
        self._table = table
        self._hello = hello
        self._thread = LoopThread("dualpath-export")
        self._lines: set[Line] = set()
        try:
            self.port: int = self._thread.call(self._listen(host, port), 10)
        except OSError as error:
            self._thread.stop()
            raise StartupError(f"DualPath: no export port at {host}:{port}: {error}") from error

    @property
    def alive(self) -> bool:
        return self._thread.alive

    def stop(self) -> None:
        self._thread.call(self._close(), 5)
        self._thread.stop()

    async def _listen(self, host: str, port: int) -> int:
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_LINE)
        self._ticker = asyncio.create_task(self._tick())
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._ticker.cancel()
        self._server.close()
        for line in list(self._lines):
            line.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            self._table.say_alive()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer, asyncio.get_running_loop())
        self._lines.add(line)
        send = line.send  # one object for the whole connection: the table compares by identity
        try:
            with contextlib.suppress(asyncio.CancelledError):
                async for message in line.messages():
                    self._answer(message, line, send)
        except ProtocolError as error:
            log.warning("DualPath: export connection closed: %s", error)
        finally:
            self._lines.discard(line)
            self._table.gone(send)
            line.close()

    def _answer(self, message: Message, line: Line, send: Send) -> None:
        match message:
            case Hello(fingerprint=fingerprint):
                line.send(self._hello)
                if fingerprint != self._hello.fingerprint:
                    raise ProtocolError(f"a peer with other pages: {fingerprint!r}")
            case Want(room, plan_id, lo, hi) if 0 <= lo < hi < MAX_PAGE:
                self._table.want((room, plan_id), lo, hi, send, time.monotonic())
            case Done(room, plan_id):
                self._table.done((room, plan_id))
            case _:
                raise ProtocolError(f"unexpected {message}")
