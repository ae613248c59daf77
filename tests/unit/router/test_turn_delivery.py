"""How a turn reaches its client: replays look like turns, clients that go leave nothing, defects
carry their request id."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from router_world import Event, eventually, failure, world

from agent_runtime.dispatch.render import render
from agent_runtime.owners import ANONYMOUS
from agent_runtime.trajectory.model import (
    ChatPart,
    MessagesInput,
    PlacementRecord,
    SessionHead,
    Tiers,
    Timing,
    TurnRecord,
    TurnRequest,
    Usage,
)
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.errors import TemplateRewrite
from dualpath_sglang.contract.ids import OwnerId, SessionId
from dualpath_sglang.contract.render import Reply, Request, Rewrite

BODY: dict[str, Any] = {"token_ids": [1, 2, 3], "max_new_tokens": 4}


def streamed(events: list[Event]) -> tuple[list[int], str]:
    tokens = [data for name, data in events if name == "tokens"]
    return [t for data in tokens for t in data["token_ids"]], "".join(d["text"] for d in tokens)


async def test_a_replayed_stream_is_read_like_the_first() -> None:
    async with world() as w:
        sid = await w.session()
        first = await w.events(sid, key="k", **BODY)
        again = await w.events(sid, key="k", **BODY)
        assert [name for name, _ in again] == ["turn.started", "tokens", "turn.done"]
        assert again[0] == first[0]
        assert streamed(again) == streamed(first)
        assert again[-1][1] == first[-1][1] | {"replayed": True}
        assert len(w.decode.bodies) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_while_its_turn_waits_leaves_nothing(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with world(max_inflight=1) as w:
        busy, gone = await w.session(), await w.session()
        w.decode.fault = "hang"
        first = asyncio.create_task(w.turn(busy, **BODY))
        await eventually(lambda: w.router.loop.inflight)
        second = asyncio.create_task(w.turn(gone, stream=stream, **BODY))
        await eventually(lambda: w.router.loop.waiting)
        second.cancel()
        await eventually(lambda: w.router.loop.waiting == 0)
        session = await w.router.sessions.get(ANONYMOUS, SessionId(gone))
        await eventually(lambda: not session.busy)
        assert (session.turns, len(w.decode.bodies)) == (0, 1)
        first.cancel()
        await w.idle()
    assert not caplog.records, caplog.text


async def test_a_defect_is_a_500_that_names_its_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:

        async def broken(owner: OwnerId, session_id: SessionId) -> Session:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(w.router.sessions, "get", broken)
        reply = await w.http.get("/v1/sessions/s")
        assert reply.status_code == 500
        error = failure(reply)
        assert error["type"] == "internal_error"
        assert "a defect" not in error["message"]
        assert error["request_id"] in caplog.text
        assert "a defect" in caplog.text


class RewritingRenderer:
    """Stub: the template would rewrite message `index` of the conversation."""

    def __init__(self, index: int) -> None:
        self.index = index

    async def ask(self, request: Request) -> Reply:
        return Rewrite(self.index, f"changes message {self.index}")

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(("index", "field"), [(1, "messages"), (2, "messages[0]")])
async def test_a_rewrite_names_the_field_of_this_turn(index: int, field: str) -> None:
    user = {"role": "user", "content": "hi"}
    session = Session(SessionHead(SessionId("s"), 0.0, {}))
    session.commit(
        TurnRecord(
            0, 0, pack([1]), pack([2]), "ho", "stop",
            Usage(1, 1, 0, Tiers(), None), PlacementRecord("p", "d", None, ""), Timing(0, 0, 0),
            ChatPart(None, 0, (user,), "hi", "ho", "ho"),
        )
    )  # fmt: skip
    request = TurnRequest(MessagesInput((user,)))
    with pytest.raises(TemplateRewrite, match=f"changes message {index}") as caught:
        await render(session, request, RewritingRenderer(index))
    assert caught.value.field == field


async def test_the_log_joins_the_ids_of_client_and_engines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dualpath.turns")
    async with world() as w:
        sid = await w.session()
        good = await w.turn(sid, **BODY)
        w.decode.fault = "event"
        bad = await w.turn(sid, **BODY)
    for reply, body, word in zip((good, bad), w.decode.bodies, ("turn 0", "stub's"), strict=True):
        line = next(r.message for r in caplog.records if body["rid"] in r.message)
        assert reply.headers["x-request-id"] in line
        assert word in line
