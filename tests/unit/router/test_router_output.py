"""What a turn's output looks like to a client: cut by the router where an engine goes on, on one
line for every reader, alive while nothing comes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from render_process import write_folder
from router_world import World, eventually, failure, world
from stub_engines import StubEngine

from agent_runtime.http import delivery


class Speaking(StubEngine):
    """Stub that says `words`, whatever is asked, and knows no stop strings."""

    words = "one two\nthree four"

    def output(self, prompt: list[int], count: int) -> list[int]:
        return list(self.words.encode())[:count]


def speaking(words: str = Speaking.words) -> list[StubEngine]:
    engines = [Speaking("p0", "prefill"), Speaking("d0", "decode", incremental=True)]
    for engine in engines:
        engine.words = words
    return list(engines)


async def streamed(w: World, **body: Any) -> tuple[str, dict[str, Any]]:
    events = await w.events(await w.session(), **body)
    return "".join(data["text"] for name, data in events if name == "tokens"), events[-1][1]


@pytest.mark.parametrize(
    ("sampling", "text", "tokens", "matched"),
    [
        ({"stop": "two"}, "one ", b"one two", "two"),
        ({"stop": ["zz", "o\nt"]}, "one tw", b"one two\nt", "o\nt"),
        ({"stop": "two", "no_stop_trim": True}, "one two", b"one two", "two"),
        ({"stop_regex": r"\s\w{4,}"}, "one two\nthre", b"one two\nthre", r"\s\w{4,}"),
        ({"stop": "five"}, Speaking.words, Speaking.words.encode(), None),
    ],
)
async def test_a_stop_that_the_engine_did_not_see(
    tmp_path: Path, sampling: dict[str, Any], text: str, tokens: bytes, matched: str | None
) -> None:
    """The text ends there, the engine is told, the next turn goes on from the last token."""
    async with world(*speaking(), model_path=str(write_folder(tmp_path))) as w:
        sid = await w.session()
        body = {"token_ids": [1], "max_new_tokens": 18, "sampling": sampling}
        done = await w.done(sid, **body)
        assert (done["text"], bytes(done["token_ids"])) == (text, tokens)
        assert done["finish_reason"] == ("length" if matched is None else "stop")
        assert done["matched_stop"] == matched
        rid = w.decode.body["rid"]
        await eventually(lambda: w.decode.is_done_with(rid))
        if matched is not None:
            assert rid in w.decode.aborted
        assert "stop_regex" not in w.decode.body["sampling_params"]
        assert w.decode.body["sampling_params"].get("stop") == sampling.get("stop")
        assert await w.history(sid) == [1, *tokens]
        assert await streamed(w, **body) == (text, await anything_but_ids(done, w))
        assert all(state.healthy for state in w.router.loop.engines.values())
        await w.idle()


async def anything_but_ids(done: dict[str, Any], w: World) -> dict[str, Any]:
    """Equal to `done` but for what differs between two sessions."""

    class Like(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            assert isinstance(other, dict)
            names = self.keys() - {"session_id", "timing"}
            return all(self[name] == other[name] for name in names)

        __hash__ = None  # type: ignore[assignment]

    return Like(done)


async def test_a_stream_says_only_what_stays(tmp_path: Path) -> None:
    """What may be the beginning of a stop string waits; characters come whole."""
    async with world(*speaking("a🙂 sto sta"), model_path=str(write_folder(tmp_path))) as w:
        sid = await w.session()
        body = {"token_ids": [1], "max_new_tokens": 13, "sampling": {"stop": ["stop", "start"]}}
        events = await w.events(sid, **body)
        texts = [data["text"] for name, data in events if name == "tokens"]
        assert texts == ["a", "", "", "", "🙂", " ", "", "", "", "sto ", "", "", "sta"]
        assert events[-1][1]["text"] == "a🙂 sto sta"


async def test_no_character_of_a_text_ends_a_line(tmp_path: Path) -> None:
    words = "a\u2028b\u2029c\u0085d\n\r"
    async with world(*speaking(words), model_path=str(write_folder(tmp_path))) as w:
        path = f"/v1/sessions/{await w.session()}/turns"
        body = {"token_ids": [1], "max_new_tokens": len(words.encode()), "stream": True}
        reply = await w.http.post(path, json=body)
        blocks = [block for block in reply.text.split("\n\n") if block]
        trees = []
        for block in blocks:
            name, data = block.splitlines()  # at every line end that Unicode knows
            assert name.startswith("event: ")
            trees.append(json.loads(data.removeprefix("data: ")))
        assert trees[-1]["text"] == words
        assert "".join(tree["text"] for tree in trees[1:-1]) == words


async def raw(w: World, body: dict[str, Any]) -> httpx.Response:
    path = f"/v1/sessions/{await w.session()}/turns"
    return await w.http.post(path, json=body | {"stream": True})


async def test_a_silent_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """By empty lines, which dispatch no event; our own client reads over them."""
    monkeypatch.setattr(delivery, "SILENCE_S", 0.05)
    async with world() as w:
        w.decode.fault, w.decode.after = "hang", 2
        task = asyncio.create_task(raw(w, {"token_ids": [1], "max_new_tokens": 4}))
        await asyncio.sleep(0.4)
        w.decode.go.set()
        reply = await task
    beats = [part for part in reply.content.split(b"\n\n") if part.startswith(b"\n")]
    assert reply.content.count(b"\n\n\n") + len(beats) > 0
    events = [line for line in reply.text.splitlines() if line.startswith("event: ")]
    assert events == ["event: turn.started", *["event: tokens"] * 4, "event: turn.done"]


async def test_headers_do_not_wait_for_a_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that fails after that says so in its stream."""
    monkeypatch.setattr(delivery, "SILENCE_S", 0.05)
    async with world(max_inflight=1) as w:
        w.decode.fault = "hang"
        first = asyncio.create_task(raw(w, {"token_ids": [1]}))
        await eventually(lambda: w.router.loop.inflight)
        reply = await raw(w, {"token_ids": [1], "deadline_s": 0.3})
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        name, data = reply.text.strip().splitlines()
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["type"] == "deadline_exceeded"
        w.decode.go.set()
        await first


async def test_a_broken_connection_of_an_engine_that_listens() -> None:
    """It may be that request's own fault: the engine stays in the fleet."""
    async with world(health_interval_s=60.0) as w:
        w.decode.fault = "cut"
        reply = await w.turn(await w.session(), token_ids=[1])
        assert failure(reply)["type"] == "engine_failure"
        assert w.router.loop.missing_roles() == ()
        w.decode.fault = ""
        await w.done(await w.session(), token_ids=[1], max_new_tokens=1)


async def test_long_integers_of_a_client_are_kept_or_refused() -> None:
    async with world() as w:
        good = {"a": [2**64 - 1, -(2**63)], "b": 1.5}
        reply = await w.http.post("/v1/sessions", json={"metadata": good})
        shown = await w.http.get(f"/v1/sessions/{reply.json()['session_id']}")
        assert shown.json()["metadata"] == good
        for bad in (2**64, -(2**63) - 1, 10**30):
            reply = await w.http.post("/v1/sessions", json={"metadata": {"a": [1, {"b": bad}]}})
            assert (reply.status_code, failure(reply)["field"]) == (400, "metadata.a[1].b")
