"""An asyncio loop in a thread of its own, and messages over its streams.

SGLang's scheduler thread is no event loop; it talks to this one by calls that never block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from dualpath_sglang.secondpath.protocol import MAX_LINE, Message, ProtocolError, decode, encode

log = logging.getLogger("dualpath")


class LoopThread:
    """A daemon thread that runs an event loop until `stop`."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> Any:
        """Run `coroutine` there and wait for its result. Not from the loop's own thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run `coroutine` there and go on."""
        asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.close()


class Line:
    """One connection. `send` may be called from any thread; it never blocks and never raises."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._reader, self._writer, self._loop = reader, writer, loop

    def send(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the connection
            self._loop.call_soon_threadsafe(self._write, encode(message))

    async def messages(self) -> AsyncIterator[Message]:
        """Until the other side closes. Raises ProtocolError."""
        while True:
            try:
                line = await self._reader.readline()
            except (ValueError, ConnectionError, OSError) as error:
                if isinstance(error, ValueError):
                    raise ProtocolError(f"a line of more than {MAX_LINE} bytes") from error
                return
            if not line.endswith(b"\n"):
                return
            yield decode(line)

    def close(self) -> None:
        self._writer.close()

    def _write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)
