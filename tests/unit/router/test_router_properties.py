"""What must hold whatever happens: exact histories, nothing left, no token lost or told twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_world import World, eventually, world
from stub_engines import Fault, StubEngine, formula

from agent_runtime.dispatch.engine_client import _Seen
from agent_runtime.owners import ANONYMOUS
from agent_runtime.trajectory.model import (
    PlacementRecord,
    SessionHead,
    StoredSession,
    Tiers,
    Timing,
    TurnRecord,
    Usage,
)
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.tokens import from_bytes, pack, to_bytes
from dualpath_sglang.contract.ids import SessionId

SESSIONS, TURNS = 20, 8
FAULTS: tuple[Fault, ...] = ("status", "event", "abort", "cut", "end", "nonsense")
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=20)


class Flaky(StubEngine):
    """Stub that fails every fifth request or so, each time in another way."""

    def fault_of(self, rid: str) -> Fault:
        number = int(rid, 16) // (7 if self.role == "prefill" else 1)
        return FAULTS[number % len(FAULTS)] if number % 5 == 0 else ""


async def one_session(w: World, rng: random.Random) -> None:
    """Sends each turn until it is there, leaves some streams early, keeps its own history."""
    sid, history = await w.session(), list[int]()
    for turn in range(TURNS):
        appended = [rng.randrange(1000) for _ in range(rng.randrange(1, 6))]
        keep = rng.randrange(len(history) + 1) if rng.random() < 0.2 else len(history)
        body: dict[str, Any] = {"token_ids": appended, "keep": keep, "max_new_tokens": 5}
        if rng.random() < 0.3:
            async with w.streaming(sid, if_turn=turn, **body) as events:
                await anext(events)
            await until_not_busy(w, sid)
        if (await w.http.get(f"/v1/sessions/{sid}")).json()["turns"] == turn:
            while (reply := await w.turn(sid, if_turn=turn, **body)).status_code != 200:
                assert reply.status_code in (502, 503), reply.text
        history = [*history[:keep], *appended]
        history += formula(history, 5)
        assert await w.history(sid) == history


async def until_not_busy(w: World, sid: str) -> None:
    session = await w.router.sessions.get(ANONYMOUS, SessionId(sid))
    await eventually(lambda: not session.busy)


@pytest.mark.parametrize("policy", ["round_robin", "paper", "dualpath"])
async def test_many_sessions_at_once_on_engines_that_fail(tmp_path: Path, policy: str) -> None:
    names = [("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")]
    engines = [Flaky(name, role, after=1 if role == "decode" else 0) for name, role in names]  # type: ignore[arg-type]
    settings: dict[str, Any] = {
        "database": str(tmp_path / "db"), "loaded_sessions": 5, "no_engine_wait_s": 5.0,
        "max_inflight": 8, "health_interval_s": 0.01, "policy": policy, "split_policy": "auto",
    }  # fmt: skip
    async with world(*engines, **settings) as w:
        rngs = [random.Random(seed) for seed in range(SESSIONS)]
        await asyncio.gather(*(one_session(w, rng) for rng in rngs))
        await w.idle()
        assert w.router.loop.policy_failures == 0
        bodies = w.engines[2].bodies + w.engines[3].bodies
        failed = sum(bool(w.engines[2].fault_of(body["rid"])) for body in bodies)
        assert len(bodies) >= SESSIONS * TURNS
        assert failed > 10
        assert len({body["bootstrap_room"] for body in bodies}) == len(bodies)


def record(turn: int, kept: int, given_ids: list[int], output: list[int]) -> TurnRecord:
    return TurnRecord(
        turn, kept, pack(given_ids), pack(output), "", "stop", Usage(0, 0, 0, Tiers(), None),
        PlacementRecord("p", "d", None, ""), Timing(0.0, None, 0.0),
    )  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1), tokens, tokens), max_size=12))
def test_a_history_is_its_turns_and_nothing_else(turns: list[tuple[float, Any, Any]]) -> None:
    """However much of it each turn kept; also when it is built again from what was stored."""
    session, model, records = Session(SessionHead(SessionId("s"), 0, {})), list[int](), []
    for number, (part, given_ids, output) in enumerate(turns):
        kept = round(part * len(model))
        records.append(record(number, kept, given_ids, output))
        session.commit(records[-1])
        model = model[:kept] + given_ids + output
        assert session.tokens.tolist() == model
        assert records[-1].history_tokens == len(model)
        assert session.kept(None) == len(model)
    again = Session.from_stored(StoredSession(session.head, tuple(records)))
    assert (again.tokens, again.turns) == (session.tokens, session.turns)


@given(tokens)
def test_tokens_survive_the_database(token_ids: list[int]) -> None:
    assert from_bytes(to_bytes(pack(token_ids))).tolist() == token_ids


@pytest.mark.parametrize("incremental", [True, False])
@given(sizes=st.lists(st.integers(0, 4), max_size=10), data=st.data())
def test_no_token_is_lost_or_told_twice(
    incremental: bool, sizes: list[int], data: st.DataObject
) -> None:
    """Both ways in which SGLang streams, with events of any number of tokens."""
    words = st.lists(st.text(max_size=2), min_size=sum(sizes), max_size=sum(sizes))
    texts = data.draw(words)
    seen, ids, text, sent = _Seen(), list[int](), "", 0
    for size in sizes:
        start, sent = sent, sent + size
        first = start if incremental else 0
        event = {
            "output_ids": list(range(first, sent)),
            "text": "".join(texts[first:sent]),
            "meta_info": {"completion_tokens": sent},
        }
        new_ids, new_text = seen.new(event)
        ids, text = ids + new_ids, text + new_text
        assert ids == list(range(sent))
        assert text == "".join(texts[:sent])
