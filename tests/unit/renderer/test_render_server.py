"""The socket: many requests at once, and nothing a client sends ends it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.contract.render import (
    LINE_LIMIT,
    Delta,
    Detokenize,
    RenderDelta,
    RenderError,
    Reply,
    Text,
    Tokenize,
    Tokens,
    decode_reply,
    encode_request,
)
from dualpath_sglang.renderer.model_files import ModelFiles
from dualpath_sglang.renderer.server import LineServer, claim_socket_path
from dualpath_sglang.renderer.service import RenderService

PROBE = encode_request(1, Tokenize("x"))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, line: bytes) -> None:
        self.writer.write(line)
        await self.writer.drain()

    async def receive(self) -> tuple[int | None, Reply]:
        return decode_reply(await self.reader.readline())

    async def ask(self, line: bytes) -> tuple[int | None, Reply]:
        await self.send(line)
        return await self.receive()


@asynccontextmanager
async def connected(path: Path, answer: Callable[[bytes], bytes]) -> AsyncIterator[Client]:
    server = LineServer(path, answer)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path), limit=LINE_LIMIT)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await server.stop()


@pytest.fixture
def answer(chatml: ModelFiles) -> Callable[[bytes], bytes]:
    return RenderService(chatml).answer


async def test_every_op_over_the_socket(
    tmp_path: Path, answer: Callable[[bytes], bytes], chatml: ModelFiles
) -> None:
    async with connected(tmp_path / "s", answer) as client:
        number, tokens = await client.ask(encode_request(2, Tokenize("hello<|im_end|>")))
        assert (number, tokens) == (2, Tokens(chatml.tokenizer.encode("hello<|im_end|>")))
        assert isinstance(tokens, Tokens)
        back = await client.ask(encode_request(3, Detokenize(tokens.token_ids)))
        assert back == (3, Text("hello<|im_end|>", "hello"))
        request = RenderDelta("", (), ({"role": "user", "content": "x"},))
        _, delta = await client.ask(encode_request(5, request))
        assert isinstance(delta, Delta)


@pytest.mark.parametrize(
    ("line", "number", "field"),
    [
        (b"not json\n", None, None),
        (b"\n", None, None),
        (b"\xff\xfe\n", None, None),
        (b'{"v":1,"id":9,"request":{"op":"sing"}}\n', 9, "op"),
        (b'{"v":7,"id":9,"request":{"op":"tokenize","text":"x"}}\n', 9, "v"),
        (b'{"v":1,"id":9,"request":{"op":"tokenize","text":"\\ud800"}}\n', None, None),
        (b'{"v":1,"id":9,"request":{"op":"detokenize","token_ids":[-1]}}\n', 9, "token_ids"),
        (b'{"v":1,"id":9,"request":{"op":"detokenize","token_ids":[300]}}\n', 9, "token_ids"),
        (b"[" * 100_000 + b"\n", None, None),
    ],
)
async def test_a_bad_line_is_answered_and_the_connection_lives(
    tmp_path: Path,
    answer: Callable[[bytes], bytes],
    line: bytes,
    number: int | None,
    field: str | None,
) -> None:
    async with connected(tmp_path / "s", answer) as client:
        got, error = await client.ask(line)
        assert isinstance(error, RenderError)
        assert (got, error.kind, error.field) == (number, "bad_request", field)
        assert isinstance((await client.ask(PROBE))[1], Tokens)


async def test_a_line_over_the_limit_is_named_and_skipped(
    tmp_path: Path, answer: Callable[[bytes], bytes]
) -> None:
    async with connected(tmp_path / "s", answer) as client:
        long_line = b'{"text":"' + b"x" * (LINE_LIMIT + 10) + b'"}\n'
        _, error = await client.ask(long_line)
        assert isinstance(error, RenderError)
        assert error.kind == "too_large"
        assert str(LINE_LIMIT) in error.message
        assert isinstance((await client.ask(PROBE))[1], Tokens)


async def test_the_longest_line_is_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    async with connected(tmp_path / "s", lambda line: b"%d\n" % len(line)) as client:
        await client.send(b"x" * (LINE_LIMIT - 1) + b"\n")
        assert await client.reader.readline() == b"%d\n" % LINE_LIMIT
        _, error = await client.ask(b"x" * LINE_LIMIT + b"\n")
        assert isinstance(error, RenderError)


async def test_a_slow_request_does_not_hold_up_the_others(tmp_path: Path) -> None:
    release = threading.Event()

    def echo_slowly(line: bytes) -> bytes:
        if line == b"slow\n":
            assert release.wait(30)
        return line

    async with connected(tmp_path / "s", echo_slowly) as client:
        await client.send(b"slow\nquick\n")
        try:
            assert await client.reader.readline() == b"quick\n"
        finally:
            release.set()
        assert await client.reader.readline() == b"slow\n"


async def test_many_requests_on_many_connections_get_their_own_answers(
    tmp_path: Path, answer: Callable[[bytes], bytes], chatml: ModelFiles
) -> None:
    path = tmp_path / "s"

    async def ask_many(base: int) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        client = Client(reader, writer)
        numbers = range(base, base + 100)
        sending = asyncio.create_task(
            client.send(b"".join(encode_request(n, Tokenize(f"text {n}")) for n in numbers))
        )
        got = dict([await client.receive() for _ in numbers])
        await sending
        assert got == {n: Tokens(chatml.tokenizer.encode(f"text {n}")) for n in numbers}
        writer.close()

    async with connected(path, answer):
        await asyncio.gather(*(ask_many(base) for base in range(0, 800, 100)))


async def test_a_client_that_leaves_early_harms_nobody(
    tmp_path: Path, answer: Callable[[bytes], bytes]
) -> None:
    async with connected(tmp_path / "s", answer) as client:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(encode_request(1, Tokenize("word " * 1000)) * 5 + b'{"half')
            writer.transport.abort()
        assert isinstance((await client.ask(PROBE))[1], Tokens)


async def test_a_defect_is_an_error_reply_without_its_traceback(
    tmp_path: Path, chatml: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RenderService, request: object) -> Reply:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(RenderService, "reply", broken)
    async with connected(tmp_path / "s", RenderService(chatml).answer) as client:
        got = await client.ask(encode_request(4, Tokenize("x")))
        assert got == (4, RenderError("internal", "ZeroDivisionError: of ours"))


async def test_stop_closes_connections_and_removes_the_socket(tmp_path: Path) -> None:
    async with connected(tmp_path / "s", lambda line: line) as client:
        await client.send(b"x\n")
        assert await client.reader.readline() == b"x\n"
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "s").exists()
    assert await client.reader.read() == b""


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    claim_socket_path(path)
    assert not path.exists()


def test_a_path_in_use_or_unfit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(StartupError, match="another process listens"):
            claim_socket_path(path)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(StartupError, match="is no socket"):
        claim_socket_path(file)
    assert file.read_text() == "kept"
    with pytest.raises(StartupError, match="does not exist"):
        claim_socket_path(tmp_path / "missing" / "s")
    with pytest.raises(StartupError, match="use a shorter"):
        claim_socket_path(tmp_path / ("x" * 120))


def test_json_of_replies_is_one_line_each(answer: Callable[[bytes], bytes]) -> None:
    line = answer(encode_request(1, Tokenize("a\nb")))
    assert line.endswith(b"\n")
    assert json.loads(line)["id"] == 1
