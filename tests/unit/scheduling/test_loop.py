"""The loop around a policy: whatever that does, no turn is lost and none waits for nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest
from clusters import RNG, turn

from agent_runtime.config import EngineEndpoint, RouterConfig
from agent_runtime.dispatch.loop import PASS_TURNS, PlacementLoop
from agent_runtime.scheduling.baselines import round_robin
from agent_runtime.scheduling.placement import Decision, Placed, Policy, Waiting
from agent_runtime.scheduling.view import ClusterView, TurnView
from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.errors import Saturated
from dualpath_sglang.contract.ids import EngineId, RequestId

ENDPOINTS = {
    EngineId("p0"): EngineEndpoint("p0", "prefill", "http://127.0.0.1:1"),
    EngineId("d0"): EngineEndpoint("d0", "decode", "http://127.0.0.1:2"),
}
Wrong = Callable[[list[Decision]], list[Decision]]


def loop_with(policy: Policy, **settings: float) -> PlacementLoop:
    config = msgspec.structs.replace(RouterConfig(), **settings)
    loop = PlacementLoop(ENDPOINTS, config, policy, clock=ManualClock(), rng=RNG)
    for name in loop.engines:
        loop.report_health(name, True, "")
    return loop


def raises(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    raise ZeroDivisionError("a defect")


def nobody(
    view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
) -> list[Decision]:
    """No room for anybody; each is overtaken once more."""
    return [Waiting(one.id, "no", group=7, overtaken=one.overtaken + 1) for one in waiting]


def spoiled(wrong: Wrong) -> Policy:
    def policy(
        view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
    ) -> list[Decision]:
        return wrong(round_robin(view, waiting, now, rng))

    return policy


def elsewhere(decisions: list[Decision]) -> list[Decision]:
    return [replace(d, decode=EngineId("x")) for d in decisions if isinstance(d, Placed)]


def for_others(decisions: list[Decision]) -> list[Decision]:
    return [Waiting(RequestId("x"), "") for _ in decisions]


@pytest.mark.parametrize(
    "policy", [raises, spoiled(elsewhere), spoiled(for_others), spoiled(lambda decisions: [])]
)
async def test_round_robin_takes_over_from_a_policy_that_fails(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_with(policy)
    caplog.set_level(logging.ERROR, "dualpath.placement")
    placed = [await loop.place(turn(i)) for i in range(5)]
    assert {(p.prefill, p.decode) for p in placed} == {("p0", "d0")}
    assert all(p.reason.startswith("round robin") for p in placed)
    for one in placed:
        loop.release(one.id)
    assert (loop.inflight, loop.waiting, loop.policy_failures) == (0, 0, 5)
    assert len(caplog.records) == 3, "the 1st, 2nd and 4th time: a log is no place for all of them"


async def test_what_a_decision_says_of_a_waiting_turn_is_in_its_next_view() -> None:
    seen: list[tuple[int | None, int]] = []

    def watched(
        view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
    ) -> list[Decision]:
        seen.extend((one.group, one.overtaken) for one in waiting)
        return nobody(view, waiting, now, rng)

    loop = loop_with(watched)
    task = asyncio.create_task(loop.place(turn()))
    await asyncio.sleep(0)
    loop.report_health(EngineId("p0"), True, "")
    assert seen == [(None, 0), (7, 1)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert loop.waiting == 0


async def test_a_long_queue_is_placed_window_by_window() -> None:
    sizes: list[int] = []

    def counted(
        view: ClusterView, waiting: Sequence[TurnView], now: float, rng: random.Random
    ) -> list[Decision]:
        sizes.append(len(waiting))
        return round_robin(view, waiting, now, rng)

    loop = loop_with(counted, max_inflight=1)
    tasks = [asyncio.create_task(loop.place(turn(i))) for i in range(3 * PASS_TURNS)]
    await asyncio.sleep(0)
    assert max(sizes) == PASS_TURNS
    assert loop.waiting == 3 * PASS_TURNS - 1
    for i, task in enumerate(tasks):
        assert (await task).id == turn(i).id, "first come, first served"
        loop.release(turn(i).id, clean=True)
    assert (loop.waiting, loop.inflight) == (0, 0)


async def test_all_of_a_long_queue_is_refused_when_no_engine_comes_back() -> None:
    loop = loop_with(round_robin, no_engine_wait_s=0.05)
    loop.report_health(EngineId("p0"), False, "gone")
    waits = [loop.place(turn(i, arrived=-1.0)) for i in range(2 * PASS_TURNS)]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(result, Saturated) for result in results)
    assert loop.waiting == 0
