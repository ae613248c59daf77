"""What the router remembers of earlier turns, and that the next turn's view has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router_world import world

from agent_runtime.dispatch.past import Past
from agent_runtime.owners import ANONYMOUS
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Placed
from agent_runtime.scheduling.view import Rank, TurnView
from agent_runtime.trajectory.model import SessionName
from dualpath_sglang.contract.engine_report import EngineReport, Memory
from dualpath_sglang.contract.ids import EngineId, RequestId, SessionId

P0, D0, D1 = (Rank(EngineId(name)) for name in ("p0", "d0", "d1"))
S = SessionName(ANONYMOUS, SessionId("s"))
MEMORY = Memory(
    device_free=100, device_pool=300, host_free=100, host_pool=600, loadable=1, load_limit=1
)


def placed(decode: Rank = D0) -> Placed:
    return Placed(RequestId("r"), P0.engine, decode.engine, None, "test")


def test_pages_in_memory_and_last_engines() -> None:
    past = Past([P0, D0, D1])
    for rank in (P0, D0, D1):
        past.reported(rank, MEMORY)
    assert past.of(S, 0, 16) == ({}, None, None)
    past.ended(S, placed(), kept=0, prompt=100, output=30)
    assert past.of(S, 130, 16) == ({P0: 6, D0: 8}, P0, D0)
    assert past.of(S, 50, 16).held == {P0: 3, D0: 3}, "the turn keeps only 50 tokens"
    past.ended(S, placed(D1), kept=50, prompt=100, output=30)
    assert past.of(S, 130, 16) == ({P0: 6, D0: 3, D1: 8}, P0, D1)
    past.emptied(P0)
    assert past.of(S, 130, 16).held == {D0: 3, D1: 8}
    assert past.of(S, 130, 0).held == {}, "pages of no known size"


def test_an_engine_that_does_not_report_is_not_believed_to_hold_anything() -> None:
    past = Past([P0, D0])
    past.ended(S, placed(), kept=0, prompt=100, output=30)
    assert past.of(S, 130, 16) == ({}, P0, D0)


async def test_the_view_of_a_turn_knows_the_turn_before() -> None:
    seen: list[TurnView] = []

    def spy(view: Any, waiting: Sequence[TurnView], *more: Any) -> Any:
        seen.extend(waiting)
        return round_robin(view, waiting, *more)

    async with world() as w:
        loop = w.router.loop
        loop._policy = spy
        sid = await w.session()
        await w.done(sid, token_ids=[1] * 40, max_new_tokens=4)
        await w.done(sid, token_ids=[2], max_new_tokens=4)
    first, second = seen
    assert (first.prefill, first.decode, first.output_tokens) == (None, None, 4)
    assert (second.prefill, second.decode) == (P0, D0)


async def test_a_report_is_room_for_waiting_turns_and_memory() -> None:
    """The loop starts a pass for it, and knows the size of the engine's memory."""
    async with world() as w:
        loop = w.router.loop
        rank = D0
        report = EngineReport(
            boot_nonce="b", number=1, age_s=0.0, role="decode", seq=2, tok=70, store_queue=5,
            memory=MEMORY,
        )  # fmt: skip
        loop.report(rank, report)
        side = loop.view().decode
        assert (side.tok[0], side.free[0], loop.reading_tokens(D0.engine)) == (70, 100, 5)
        sid = await w.session()
        await w.done(sid, token_ids=[1] * 40, max_new_tokens=4)
        name = SessionName(ANONYMOUS, SessionId(sid))
        assert loop.past.of(name, 44, 16).held == {rank: 2}
