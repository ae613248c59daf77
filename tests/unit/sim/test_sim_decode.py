"""The token counter of a decode group against a plain simulation step by step in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sim.constants import Constants
from benchmarks.sim.cost import DecodeCost
from benchmarks.sim.decode import DecodeGroup
from benchmarks.sim.fabric import SharedFabric
from benchmarks.sim.loop import Loop, Phase
from benchmarks.sim.models import DS_27B
from benchmarks.sim.turn import Turn

GPUS = 2
CONSTANTS = replace(Constants(), gpus_per_node=GPUS)
COST = DecodeCost(DS_27B, CONSTANTS, GPUS)
Joins = list[tuple[float, int, int, int]]
"""When, on which GPU, prompt and output tokens."""
joins = st.lists(
    st.tuples(st.floats(0, 3), st.integers(0, GPUS - 1), st.integers(1, 9000), st.integers(2, 90)),
    min_size=1,
    max_size=12,
)


def run(wanted: Joins, room: float) -> tuple[dict[int, float], DecodeGroup]:
    loop = Loop()
    ends: dict[int, float] = {}
    group = DecodeGroup(
        loop,
        SharedFabric(loop, 1, CONSTANTS),
        COST,
        range(GPUS),
        room,
        DS_27B.token_bytes,
        True,
        joined=lambda now, turn: None,
        finished=lambda now, turn: ends.__setitem__(turn.agent, now),
    )
    for agent, (time, gpu, prompt, out) in enumerate(wanted):
        turn = Turn(agent)
        turn.begin(time, 0, prompt, out)
        turn.decode = gpu
        loop.at(time, Phase.ARRIVAL, group.accept, turn)
    loop.run()
    return ends, group


def by_pieces(wanted: Joins) -> dict[int, float]:
    """Between two changes every running turn gains tokens at 1 / step."""
    left = {i: out - 1.0 for i, (_, _, _, out) in enumerate(wanted)}
    coming = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
    running: set[int] = set()
    ends: dict[int, float] = {}
    now = 0.0
    while coming or running:
        load = [0.0] * GPUS
        for i in running:
            _, gpu, prompt, out = wanted[i]
            load[gpu] += COST.reading_s(prompt + 0.5 * out)
        step = COST.base_s + max(load)
        first = min((left[i] for i in running), default=float("inf")) * step
        arrival = wanted[coming[0]][0] - now if coming else float("inf")
        passed = min(first, arrival)
        now += passed
        for i in running:
            left[i] -= passed / step
        for i in [i for i in running if left[i] <= 1e-6]:
            running.remove(i)
            ends[i] = now
        while coming and wanted[coming[0]][0] <= now:
            running.add(coming.pop(0))
    return ends


@given(joins)
@settings(max_examples=150)
def test_the_counter_gives_the_ends_of_a_step_by_step_simulation(wanted: Joins) -> None:
    ends, group = run(wanted, room=1e9)
    assert ends == pytest.approx(by_pieces(wanted), rel=1e-6, abs=1e-6)
    assert group.preempted == 0


@given(joins, st.integers(9100, 20_000))
@settings(max_examples=150)
def test_hbm_is_never_exceeded_and_everybody_ends(wanted: Joins, room: int) -> None:
    loop = Loop()
    ends: list[int] = []
    highest = 0.0

    def look(now: float, turn: Turn) -> None:
        nonlocal highest
        highest = max(highest, *(group.held(i) for i in range(GPUS)))

    def end(now: float, turn: Turn) -> None:
        ends.append(turn.agent)

    fabric = SharedFabric(loop, 1, CONSTANTS)
    size = DS_27B.token_bytes
    group = DecodeGroup(loop, fabric, COST, range(GPUS), room, size, False, look, end)
    for agent, (time, gpu, prompt, out) in enumerate(wanted):
        turn = Turn(agent)
        turn.begin(time, 0, prompt, out)
        turn.decode = gpu
        loop.at(time, Phase.ARRIVAL, group.accept, turn)
    loop.run()
    assert sorted(ends) == list(range(len(wanted)))
    assert highest <= room + 1e-6
    assert group.tokens == sum(out for _, _, _, out in wanted)


def test_a_full_gpu_preempts_who_came_last_and_lets_him_end_later() -> None:
    ends, group = run([(0.0, 0, 5000, 90), (0.1, 0, 5000, 90)], room=10_050)
    assert group.preempted == 1
    assert ends[0] < ends[1]
