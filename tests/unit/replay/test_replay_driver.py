"""The driver against a stub router on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from replay_stub_router import StubRouter, formula, serving

from benchmarks.replay import router
from benchmarks.replay.compare import prompts
from benchmarks.replay.driver import replay
from benchmarks.replay.midway import MidwayFailed
from benchmarks.replay.plan import DriverOptions, Gaps
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import Observed
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, Turn

pytestmark = pytest.mark.timeout(20)
SOURCE = TokenSource(TokenSpace(1000))


def chain(sid: str, turns: int = 3, gap_s: float | None = None) -> Session:
    made: list[Turn] = []
    for _ in range(turns):
        made.append(Turn(made[-1].context if made else 0, 6, 3, 3, gap_s))
    return Session("tiny", sid, tuple(made))


async def drive(
    stub: StubRouter, sessions: list[Session], midway: Any = None, **options: Any
) -> Observed:
    with Progress("test", sum(len(s.turns) for s in sessions)) as progress:
        async with serving(stub.app()) as url:
            made = DriverOptions(url=url, **options)
            return await replay(sessions, SOURCE, made, progress, midway)


async def test_all_turns_are_sent_with_exact_lengths() -> None:
    stub = StubRouter()
    sessions = [chain("a"), chain("b", 2)]
    seen = await drive(stub, sessions)
    assert [(t.session, t.turn) for t in seen.turns] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert all(turn.error is None for turn in seen.turns)
    assert [s.completed_turns for s in seen.sessions] == [3, 2]
    assert all(s.jct_s is not None and s.jct_s > 0 for s in seen.sessions)
    body = stub.bodies[0]
    assert body["sampling"] == {
        "max_new_tokens": 3, "min_new_tokens": 3, "ignore_eos": True, "temperature": 0.0,
    }  # fmt: skip
    assert "keep" not in body
    assert stub.metadata["s/0"]["dataset"] == "tiny"
    assert sorted(entry[1] for entry in stub.log if entry[0] == "delete") == ["s/0", "s/1"]


async def test_what_is_measured() -> None:
    seen = await drive(StubRouter(), [chain("a")])
    second = seen.turns[1]
    assert (second.keep, second.append, second.out) == (9, 6, 3)
    assert (second.prompt_tokens, second.output_tokens) == (15, 3)
    assert second.prefill == {"device": 7, "host": 0, "storage": 0, "peer": 0, "computed": 8}
    assert second.decode == {"device": 7, "host": 0, "storage": 1, "peer": 0}
    assert (second.split, second.pages) == (2, 3)
    assert second.load == {"prefill": {"store_bytes": 512, "load_s": 0.25}}
    assert second.engines == {"prefill": "p0", "decode": "d0"}
    assert (second.reason, second.queued_ms) == ("only one", 1.0)
    assert second.ttft_ms is not None
    assert second.tpot_ms is not None
    assert second.e2e_ms is not None
    assert second.ttst_ms is not None
    assert second.e2e_ms >= second.ttft_ms + 2 * second.tpot_ms * 0.999
    assert seen.wall_s >= second.started_s + second.e2e_ms / 1e3


async def test_single_token_turns_have_no_tpot_and_silent_decode_no_tiers() -> None:
    stub = StubRouter()
    stub.decode_reports = False
    seen = await drive(stub, [Session("tiny", "a", (Turn(0, 4, 1, 1),))])
    (turn,) = seen.turns
    assert (turn.ttst_ms, turn.tpot_ms, turn.decode) == (None, None, None)


async def test_recorded_tokens_are_those_sent_and_received() -> None:
    stub = StubRouter()
    seen = await drive(stub, [chain("a", 2)])
    first, second = seen.tokens
    assert first.append == stub.bodies[0]["token_ids"]
    assert first.output == formula(first.append, 3)
    prompt = first.append + first.output + second.append
    assert second.prompt_tokens == len(prompt) == 15
    assert second.output == formula(prompt, 3)


async def test_context_rewrites_are_sent_as_keep() -> None:
    turns = (Turn(0, 8, 4, 2), Turn(10, 3, 2, 2), Turn(5, 3, 2, 2))
    stub = StubRouter()
    seen = await drive(stub, [Session("tiny", "a", turns)])
    assert [body.get("keep") for body in stub.bodies] == [None, 10, 5]
    assert [turn.prompt_tokens for turn in seen.turns] == [8, 13, 8]
    assert seen.sessions[0].error is None


async def test_a_turn_of_no_output_generates_a_token_that_is_neither_kept_nor_counted() -> None:
    turns = (Turn(0, 8, 0, 0), Turn(8, 3, 2, 2))
    stub = StubRouter()
    seen = await drive(stub, [Session("tiny", "a", turns)])
    assert [body["sampling"]["max_new_tokens"] for body in stub.bodies] == [1, 2]
    assert [body.get("keep") for body in stub.bodies] == [None, 8]
    assert [turn.output_tokens for turn in seen.turns] == [0, 2]
    assert [turn.prompt_tokens for turn in seen.turns] == [8, 11]
    assert seen.turns[0].ttft_ms is not None
    assert len(seen.tokens[0].output) == 1
    assert seen.sessions[0].error is None
    assert len(prompts(seen.tokens)[1]) == 11


async def test_a_turn_that_appends_nothing_sends_its_last_token_again() -> None:
    turns = (Turn(0, 8, 2, 2), Turn(10, 0, 2, 2), Turn(5, 0, 1, 1))
    stub = StubRouter()
    seen = await drive(stub, [Session("tiny", "a", turns)])
    context = seen.tokens[0].append + seen.tokens[0].output
    assert [body.get("keep") for body in stub.bodies] == [None, 9, 4]
    assert stub.bodies[1]["token_ids"] == context[9:10]
    assert stub.bodies[2]["token_ids"] == context[4:5]
    assert [turn.prompt_tokens for turn in seen.turns] == [8, 10, 5]
    assert [(turn.keep, turn.append) for turn in seen.turns] == [(0, 8), (10, 0), (5, 0)]
    assert seen.sessions[0].error is None
    assert prompts(seen.tokens)[1] == context


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("status", "conflict"),
        ("event", "engine_failure"),
        ("cut", "router_failure"),
        ("short", "protocol"),
        ("hang", "timeout"),
    ],
)
async def test_a_failed_turn_ends_its_session_only(fault: str, kind: str) -> None:
    stub = StubRouter()
    stub.faults, stub.fault_session = {1: fault}, "b"
    timeout = 0.15 if fault == "hang" else 30.0
    seen = await drive(stub, [chain("a"), chain("b"), chain("c")], turn_timeout_s=timeout)
    errors = {s.session: s.error.kind if s.error else None for s in seen.sessions}
    assert errors == {"a": None, "b": kind, "c": None}
    assert [s.completed_turns for s in seen.sessions] == [3, 1, 3]
    assert seen.sessions[1].jct_s is None
    failed = [turn for turn in seen.turns if turn.error is not None]
    assert [(turn.session, turn.turn) for turn in failed] == [("b", 1)]
    assert len(seen.tokens) == 7


async def test_a_history_that_differs_is_an_error() -> None:
    stub = StubRouter()
    stub.faults = {2: "lie"}
    seen = await drive(stub, [chain("a")])
    error = seen.sessions[0].error
    assert error is not None
    assert error.kind == "history"
    assert "position 26" in error.message


async def test_no_router_at_all() -> None:
    with Progress("test", 3) as progress:
        options = DriverOptions("http://127.0.0.1:9")
        seen = await replay([chain("a")], SOURCE, options, progress)
    error = seen.sessions[0].error
    assert error is not None
    assert error.kind == "router_failure"
    assert "Cannot connect" in error.message
    assert seen.turns == []


async def test_concurrency_limits_sessions() -> None:
    stub = StubRouter()
    await drive(stub, [chain(str(i)) for i in range(6)], concurrency=2)
    assert stub.most_running == 2


@pytest.mark.parametrize("concurrency", [None, 1])
async def test_midway_stop_is_a_barrier(concurrency: int | None) -> None:
    """Every session, also a short and a failed one, is past turn 2 before anything goes on."""
    stub = StubRouter()
    stub.faults, stub.fault_session = {0: "status"}, "broken"
    sessions = [chain("a", 4), chain("short", 1), chain("broken", 4), chain("b", 4)]
    seen = await drive(stub, sessions, midway_turns=(2,), concurrency=concurrency)
    at = stub.log.index(("flush",))
    assert stub.log.count(("flush",)) == 1
    before = [entry for entry in stub.log[:at] if entry[0] == "turn"]
    after = [entry for entry in stub.log[at:] if entry[0] == "turn"]
    assert all(int(entry[2]) < 2 for entry in before)
    assert all(int(entry[2]) >= 2 for entry in after)
    assert (len(before), len(after)) == (2 + 1 + 1 + 2, 4)
    assert [stop["after_turn"] for stop in seen.midway] == [2]


async def test_own_midway_action() -> None:
    stub, called = StubRouter(), []

    async def action(turn: int) -> None:
        called.append(turn)

    await drive(stub, [chain("a", 3)], midway=action, midway_turns=(1, 2))
    assert called == [1, 2]
    assert ("flush",) not in stub.log


async def test_flush_is_asked_again_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "FLUSH_PAUSE_S", 0.0)
    stub = StubRouter()
    stub.flush_failures = 2
    seen = await drive(stub, [chain("a", 2)], midway_turns=(1,))
    assert stub.log.count(("flush",)) == 3
    assert seen.sessions[0].error is None
    stub.flush_failures = 1000
    with pytest.raises(MidwayFailed, match="not idle"):
        await drive(stub, [chain("a", 2), chain("b", 2)], midway_turns=(1,))


async def test_open_loop_sessions_start_when_they_arrive() -> None:
    stub = StubRouter()
    seen = await drive(stub, [chain("a", 1), chain("b", 1)], arrivals_s=(0.1, 0.0))
    late, early = seen.sessions
    assert early.arrival_s < 0.1 <= late.arrival_s
    assert stub.metadata["s/0"]["trace_session"] == "b"


async def test_recorded_gaps_are_waited_for() -> None:
    seen = await drive(StubRouter(), [chain("a", 2, gap_s=0.1)], gaps=Gaps(0.5))
    first, second = seen.turns
    assert (first.gap_s, second.gap_s) == (0.0, 0.05)
    assert first.e2e_ms is not None
    assert second.started_s - first.started_s >= 0.05 + first.e2e_ms / 1e3


def user(agent_turns: int = 2) -> list[Session]:
    """A session whose third turn waited for two sub-agents that its second had started."""

    def timed(sid: str, start_s: float, *begins: float) -> Session:
        turns = [Turn(9 * i, 6, 3, 3, t_s=at, llm_s=1.0) for i, at in enumerate(begins)]
        return Session("tiny", sid, tuple(turns), parent="user", start_s=start_s)

    agents = [timed(sid, 4, *(2.0 * i for i in range(agent_turns))) for sid in ("a1", "a2")]
    return [*agents, timed("main", 0, 0, 2, 30, 32), timed("next", 60, 0)]


def order(stub: StubRouter) -> list[str]:
    """Each turn as session and number, in the order in which they came."""
    names = {sid: data["trace_session"] for sid, data in stub.metadata.items()}
    return [f"{names[entry[1]]}.{entry[2]}" for entry in stub.log if entry[0] == "turn"]


@pytest.mark.parametrize(
    "options", [{}, {"concurrency": 1}, {"midway_turns": (1, 2, 3)}, {"arrivals_s": (None,) * 4}]
)
async def test_sub_agents_overlap_as_recorded(options: dict[str, Any]) -> None:
    """They start after the turn before them, side by side, and the turn after waits for both."""
    stub = StubRouter()
    seen = await drive(stub, user(), **options)
    assert all(session.error is None for session in seen.sessions)
    came = order(stub)
    assert came[:2] == ["main.0", "main.1"]
    assert sorted(came[2:6]) == ["a1.0", "a1.1", "a2.0", "a2.1"]
    assert came[6:] == ["main.2", "main.3", "next.0"]
    together = 1 if options.get("concurrency") else 2
    assert stub.most_running == together
    assert {data["trace_parent"] for data in stub.metadata.values()} == {"user"}


async def test_a_failed_sub_agent_is_waited_for_no_longer() -> None:
    stub = StubRouter()
    stub.faults, stub.fault_session = {0: "status"}, "a1"
    seen = await drive(stub, user())
    errors = [session.session for session in seen.sessions if session.error]
    assert errors == ["a1"]
    assert order(stub)[-3:] == ["main.2", "main.3", "next.0"]


async def test_recorded_pauses_of_sub_agents() -> None:
    seen = await drive(StubRouter(), user(1), gaps=Gaps(0.02))
    started = {(turn.session, turn.turn): turn for turn in seen.turns}
    took = started["main", 1].e2e_ms or 0.0
    after = started["main", 1].started_s + took / 1e3
    assert started["a1", 0].started_s - after >= 0.02 * 1.0
    assert started["main", 2].gap_s == pytest.approx(0.02 * 25.0)
    assert started["next", 0].started_s - started["main", 3].started_s >= 0.02 * 27.0


async def test_a_turn_with_a_time_only_is_sent_at_that_time() -> None:
    turns = (Turn(0, 6, 3, 3, t_s=0.0), Turn(9, 6, 3, 3, t_s=10.0))
    seen = await drive(StubRouter(), [Session("tiny", "a", turns)], gaps=Gaps(0.02))
    first, second = seen.turns
    assert second.started_s - first.started_s >= 0.199
    assert second.gap_s < 0.2


async def test_cancelling_the_replay_ends_its_requests() -> None:
    stub = StubRouter()
    stub.faults = {0: "hang"}
    with Progress("test", 3) as progress:
        async with serving(stub.app()) as url:
            made = DriverOptions(url=url)
            task = asyncio.create_task(replay([chain("a")], SOURCE, made, progress))
            await stub.first_turn.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_cancelling_before_the_router_has_named_a_session_leaves_none() -> None:
    stub = StubRouter()
    asked, answer = asyncio.Event(), asyncio.Event()
    create = stub.create

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        made = await create(request)
        await answer.wait()
        return made

    stub.create = slow  # type: ignore[method-assign]
    with Progress("test", 3) as progress:
        async with serving(stub.app()) as url:
            task = asyncio.create_task(replay([chain("a")], SOURCE, DriverOptions(url), progress))
            await asked.wait()
            task.cancel()
            await asyncio.sleep(0.05)
            answer.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert [entry[0] for entry in stub.log] == ["create", "delete"]
