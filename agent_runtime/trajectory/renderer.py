"""Client of the renderer process: one unix socket, many requests under way, reconnecting.

All operations are pure, so one that was cut off by a restart of the renderer is sent once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Protocol

from dualpath_sglang.contract.errors import RendererFailure
from dualpath_sglang.contract.render import (
    LINE_LIMIT,
    RenderError,
    Reply,
    Request,
    decode_reply,
    encode_request,
)

CONNECT_TIMEOUT_S = 2.0


class Renderer(Protocol):
    async def ask(self, request: Request) -> Reply:
        """Never a RenderError: those are raised. Raises RendererFailure, or BadRequest and
        BodyTooLarge for what the caller can fix."""
        ...

    async def close(self) -> None: ...


class RendererClient:
    """`socket_path` empty: there is no renderer, every request fails."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._ids = itertools.count(1)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, request: Request) -> Reply:
        if not self._path:
            raise RendererFailure(
                "the router runs without a renderer (renderer_socket is empty): send token_ids"
            )
        try:
            reply = await (await self._connected()).ask(next(self._ids), request)
        except _Lost:
            try:
                reply = await (await self._connected()).ask(next(self._ids), request)
            except _Lost as error:
                raise RendererFailure(f"the renderer closed the connection: {error}") from error
        if isinstance(reply, RenderError):
            raise reply.to_exception()
        return reply

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or self._connection.lost:
                await self.close()
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                streams = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
        except (OSError, TimeoutError) as error:
            raise RendererFailure(
                f"the renderer at {self._path} does not answer ({error or 'timeout'}): text and "
                "messages cannot become tokens now, token_ids can"
            ) from error
        return _Connection(*streams)


class _Lost(Exception):
    """The connection ended before the answer."""


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self.lost = False
        self._task = asyncio.create_task(self._read(), name="renderer")

    async def ask(self, request_id: int, request: Request) -> Reply:
        line = encode_request(request_id, request)
        if self.lost:
            raise _Lost("before the request")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            self._writer.write(line)
            await self._writer.drain()
            return await future
        except OSError as error:
            raise _Lost(str(error)) from error
        finally:
            self._waiting.pop(request_id, None)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        reason = "end of file"
        try:
            while line := await self._reader.readline():
                request_id, reply = decode_reply(line)
                future = self._waiting.get(request_id) if request_id is not None else None
                if future is not None and not future.done():
                    future.set_result(reply)
        except (OSError, ValueError, RendererFailure) as error:
            reason = str(error)
        finally:
            self.lost = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_Lost(reason))
