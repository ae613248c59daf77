"""Bad input: a clear error that names the field, no engine asked, the session as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from router_world import World, failure, world
from stub_engines import VOCABULARY, StubEngine

TOO_MANY = 10 * 1024 * 1024
shared_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[World]:
    """One router for all requests that must change nothing."""
    async with world() as w:
        yield w


async def refused(w: World, sid: str, status: int, **body: Any) -> dict[str, Any]:
    """The error of a turn that must be refused before any engine hears of it."""
    before, asked = await w.history(sid), len(w.decode.bodies)
    reply = await w.turn(sid, **body)
    assert reply.status_code == status, reply.text
    streamed = await w.turn(sid, **(body | {"stream": True}))
    assert streamed.status_code == status
    assert streamed.headers["content-type"] == "application/json"
    assert await w.history(sid) == before
    assert len(w.decode.bodies) == len(w.prefill.bodies) == asked
    return failure(reply)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"token_ids": [1], "max_new_tokens": -1}, "max_new_tokens", "greater than or equal to 1"),
        ({"token_ids": [1], "max_new_tokens": 0}, "max_new_tokens", "got 0"),
        ({"token_ids": [1], "max_new_tokens": "4"}, "max_new_tokens", "integer"),
        ({"token_ids": [1], "sampling": {"max_new_tokens": -5}}, "sampling.max_new_tokens", "-5"),
        ({"token_ids": [1], "sampling": {"temperature": -0.1}}, "sampling.temperature", "-0.1"),
        ({"token_ids": [1], "sampling": {"top_p": 1.5}}, "sampling.top_p", "1.5"),
        ({"token_ids": [1], "sampling": {"top_p": 0}}, "sampling.top_p", "number > 0"),
        ({"token_ids": [1], "sampling": {"top_k": -2}}, "sampling.top_k", "-2"),
        ({"token_ids": [1], "sampling": {"stop": 3}}, "sampling.stop", "string"),
        ({"token_ids": [1], "sampling": {"n": 2}}, "sampling.n", "unknown field"),
        ({"token_ids": [1], "sampling": {"temprature": 0}}, "sampling.temprature", "'temperature'"),
        ({"token_ids": [1], "sampling": []}, "sampling", "dictionary"),
        ({"token_ids": [1], "kep": 1}, "kep", "did you mean 'keep'"),
        ({"token_ids": [1], "zzzz": 1}, "zzzz", "known: token_ids"),
        ({"token_ids": [1], "keep": 1}, "keep", "the history has 0 tokens"),
        ({"token_ids": [1], "keep": -1}, "keep", "got -1"),
        ({"token_ids": [1, -1]}, "token_ids[1]", "got -1"),
        ({"token_ids": [1, 2**32]}, "token_ids[1]", "less than"),
        ({"token_ids": [1, 2.5]}, "token_ids[1]", "integer"),
        ({"token_ids": [1, True]}, "token_ids[1]", "integer"),
        ({"token_ids": 1}, "token_ids", "list"),
        ({"token_ids": [1], "text": "x"}, "token_ids", "token_ids and text"),
        ({}, "token_ids", "none of them"),
        ({"token_ids": []}, None, "append at least one token"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": ["hi"]}, "messages[0]", "dictionary"),
        ({"token_ids": [1], "tools": [{}]}, "tools", "messages only"),
        ({"token_ids": [1], "template_kwargs": {"a": 1}}, "template_kwargs", "messages only"),
        ({"token_ids": [1], "deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"token_ids": [1], "if_turn": -1}, "if_turn", "got -1"),
        ({"token_ids": [1], "on_template_rewrite": "no"}, "on_template_rewrite", "'cut'"),
        ({"token_ids": [1], "stream": "yes"}, "stream", "boolean"),
        (
            {"token_ids": [1], "max_new_tokens": 2, "sampling": {"max_new_tokens": 3}},
            "max_new_tokens",
            "give one of them",
        ),
        (
            {"token_ids": [1], "max_new_tokens": 2, "sampling": {"min_new_tokens": 3}},
            "sampling.min_new_tokens",
            "above max_new_tokens 2",
        ),
    ],
)
@shared_loop
async def test_a_bad_field_is_named(
    shared: World, body: dict[str, Any], field: str | None, words: str
) -> None:
    sid = await shared.session()
    if "stream" in body:
        reply = await shared.turn(sid, **body)
        assert reply.status_code == 400
        error = failure(reply)
    else:
        error = await refused(shared, sid, 400, **body)
    assert (error["type"], error["field"]) == ("bad_request", field)
    assert words in error["message"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
@shared_loop
async def test_numbers_that_no_engine_could_use(shared: World, number: str) -> None:
    """JSON for the engines has no infinity: it would arrive as null."""
    path = f"/v1/sessions/{await shared.session()}/turns"
    body = '{"token_ids": [1], "sampling": {"temperature": number}}'
    reply = await shared.http.post(path, content=body.replace("number", number))
    assert reply.status_code == 400, reply.text
    assert "not JSON" in failure(reply)["message"]
    assert shared.decode.bodies == []


async def test_keep_beyond_the_history() -> None:
    async with world() as w:
        sid = await w.session()
        await w.done(sid, token_ids=[1, 2], max_new_tokens=2)
        error = await refused(w, sid, 400, token_ids=[3], keep=5)
        assert error["field"] == "keep"
        assert "give a number from 0 to 4" in error["message"]


async def test_context_overflow_says_what_adds_up() -> None:
    async with world(context_length=10) as w:
        sid = await w.session()
        await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=3)
        error = await refused(w, sid, 400, token_ids=[4], max_new_tokens=4)
        assert error["type"] == "context_overflow"
        assert "6 tokens of history + 1 appended + 4 max_new_tokens = 11" in error["message"]
        assert "the context holds 10" in error["message"]
        error = await refused(w, sid, 400, token_ids=[4, 4, 4, 4])
        assert error["type"] == "context_overflow"
        # Without a limit the turn gets the room that is left.
        done = await w.done(sid, token_ids=[4])
        assert done["history_tokens"] == 10


async def test_the_context_is_the_smallest_that_an_engine_names() -> None:
    engines = StubEngine("p0", "prefill", context_length=50), StubEngine("d0", "decode")
    engines[1].context_length = 5
    async with world(*engines) as w:
        error = await refused(w, await w.session(), 400, token_ids=[1], max_new_tokens=5)
        assert "the context holds 5" in error["message"]


async def test_token_ids_are_checked_against_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"vocab_size": {VOCABULARY}}}')
    async with world(model_path=str(tmp_path)) as w:
        error = await refused(w, await w.session(), 400, token_ids=[1, VOCABULARY])
        assert error["field"] == "token_ids[1]"
        assert f"use ids from 0 to {VOCABULARY - 1}" in error["message"]


@pytest.mark.parametrize(
    ("raw", "words"), [(b"{", "not JSON"), (b"[]", "must be a JSON object"), (b"\xff", "not JSON")]
)
@shared_loop
async def test_a_body_that_is_no_json_object(shared: World, raw: bytes, words: str) -> None:
    for path in ("/v1/sessions", f"/v1/sessions/{await shared.session()}/turns"):
        reply = await shared.http.post(path, content=raw)
        assert reply.status_code == 400
        assert words in failure(reply)["message"]


@pytest.mark.parametrize(
    "body", [{"session_id": ""}, {"session_id": "a/b"}, {"session_id": 7}, {"metadata": []}]
)
@shared_loop
async def test_sessions_with_bad_fields(shared: World, body: dict[str, Any]) -> None:
    reply = await shared.http.post("/v1/sessions", json=body)
    assert (reply.status_code, failure(reply)["field"]) == (400, next(iter(body)))


async def test_a_session_that_does_not_exist() -> None:
    async with world() as w:
        for reply in (
            await w.http.get("/v1/sessions/nope"),
            await w.http.delete("/v1/sessions/nope"),
            await w.turn("nope", token_ids=[1]),
            await w.turn("nope", token_ids=[1], stream=True),
        ):
            assert (reply.status_code, failure(reply)["type"]) == (404, "not_found")
            assert "there is no session 'nope'" in failure(reply)["message"]


async def test_unknown_paths_methods_and_includes() -> None:
    async with world() as w:
        unknown = await w.http.get("/v2/sessions")
        assert (unknown.status_code, failure(unknown)["type"]) == (404, "not_found")
        wrong = await w.http.put("/v1/sessions")
        assert (wrong.status_code, failure(wrong)["type"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        sid = await w.session()
        include = await w.http.get(f"/v1/sessions/{sid}", params={"include": "everything"})
        assert (include.status_code, failure(include)["field"]) == (400, "include")


async def test_a_body_of_ten_megabytes() -> None:
    async with world() as w:
        sid = await w.session()
        raw = b'{"text": "' + b"x" * TOO_MANY + b'"}'
        for content in (raw, _chunks(raw)):
            reply = await w.http.post(f"/v1/sessions/{sid}/turns", content=content)
            assert (reply.status_code, failure(reply)["type"]) == (413, "body_too_large")
            assert "max_body_bytes=8388608" in failure(reply)["message"]
        reply = await w.http.post("/v1/sessions", content=raw)
        assert reply.status_code == 413
        # The router and the connections go on.
        await w.done(sid, token_ids=[1], max_new_tokens=1)


async def test_a_body_at_the_limit_is_read() -> None:
    async with world(max_body_bytes=60) as w:
        sid = await w.session()
        body = b'{"token_ids": [1], "max_new_tokens": 1}'
        for size, status in ((60, 200), (61, 413)):
            for content in (body.ljust(size), _chunks(body.ljust(size))):
                reply = await w.http.post(f"/v1/sessions/{sid}/turns", content=content)
                assert reply.status_code == status


async def _chunks(raw: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(raw), 2**16):
        yield raw[start : start + 2**16]


@pytest.mark.parametrize(
    ("key", "status"), [("", 400), ("k" * 256, 400), ("k" * 255, 200), ("a b:c/d", 200)]
)
async def test_idempotency_keys_have_a_length(key: str, status: int) -> None:
    async with world() as w:
        reply = await w.turn(await w.session(), key=key, token_ids=[1], max_new_tokens=1)
        assert reply.status_code == status
        if status == 400:
            assert failure(reply)["field"] == "Idempotency-Key"


async def test_text_and_messages_need_a_renderer() -> None:
    async with world() as w:
        sid = await w.session()
        for body in ({"text": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
            error = await refused(w, sid, 502, **body)
            assert error["type"] == "renderer_failure"
            assert "send token_ids" in error["message"]
