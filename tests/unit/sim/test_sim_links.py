"""Links: every byte arrives, no link is above its rate, and queueing theory holds."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sim.loop import Loop, Phase
from benchmarks.sim.maxmin import WIDTH, Network, max_min
from benchmarks.sim.shared_link import SharedLink

RATE = 1e6
flows = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 5_000_000)), min_size=1, max_size=40)


def run_shared(wanted: list[tuple[float, int]]) -> tuple[dict[int, float], SharedLink, float]:
    """When each (start, size) ended on a link of its own."""
    loop = Loop()
    link = SharedLink(loop, "link", RATE)
    ends: dict[int, float] = {}
    for number, (start, size) in enumerate(wanted):

        def begin(now: float, what: tuple[int, int]) -> None:
            link.start(now, what[1], lambda now, i: ends.__setitem__(i, now), what[0])

        loop.at(start, Phase.ARRIVAL, begin, (number, size))
    loop.run()
    link.settle(loop.now)
    return ends, link, loop.now


def run_network(wanted: list[tuple[float, int]]) -> dict[int, float]:
    loop = Loop()
    network = Network(loop, ["link"], [RATE])
    ends: dict[int, float] = {}
    for number, (start, size) in enumerate(wanted):

        def begin(now: float, what: tuple[int, int]) -> None:
            network.start(now, (0,), what[1], lambda now, i: ends.__setitem__(i, now), what[0])

        loop.at(start, Phase.ARRIVAL, begin, (number, size))
    loop.run()
    return ends


@given(flows)
def test_a_shared_link_carries_every_byte_and_never_more_than_its_rate(
    wanted: list[tuple[float, int]],
) -> None:
    ends, link, now = run_shared(wanted)
    total = sum(size for _, size in wanted)
    assert sorted(ends) == list(range(len(wanted)))
    assert link.flows == 0
    assert link.served == pytest.approx(total, abs=2.0 * len(wanted))
    assert link.served <= RATE * link.busy_s * (1 + 1e-9)
    assert link.busy_s <= now
    for number, (start, size) in enumerate(wanted):
        assert ends[number] - start >= (size - 1) / RATE * (1 - 1e-9)


@given(flows)
def test_one_link_is_shared_alike_in_virtual_time_and_by_filling(
    wanted: list[tuple[float, int]],
) -> None:
    virtual, _, _ = run_shared(wanted)
    filled = run_network(wanted)
    # Ends within a byte's time per flow: both call a flow ended that has a byte left.
    slack = 2 * len(wanted) / RATE
    assert virtual == pytest.approx(filled, abs=slack)


@given(flows)
def test_equal_flows_have_equal_ends(wanted: list[tuple[float, int]]) -> None:
    assert run_shared(wanted)[0] == run_shared(wanted)[0]


def test_what_is_reserved_is_not_shared_and_comes_back() -> None:
    loop = Loop()
    link = SharedLink(loop, "link", 100.0)
    ends: list[float] = []
    link.start(0.0, 1000.0, lambda now, _: ends.append(now))
    loop.at(5.0, Phase.LINK, lambda now, _: link.reserve(now, 50.0))
    loop.at(9.0, Phase.LINK, lambda now, _: link.reserve(now, -50.0))
    loop.run()
    assert ends == [pytest.approx(12.0, abs=0.05)]  # 500 + 200 + 300 bytes


def test_a_link_without_a_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"NIC 3: a link's rate must be above 0 bytes/s, not 0"):
        SharedLink(Loop(), "NIC 3", 0)
    with pytest.raises(ValueError, match=r"NIC 3: a link's rate must be above 0 bytes/s, not nan"):
        Network(Loop(), ["NIC 3"], [float("nan")])


# --- max-min fairness -------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, ...]], list[float]]:
    rates = draw(st.lists(st.floats(1.0, 1e3), min_size=1, max_size=6))
    path = st.lists(st.integers(0, len(rates) - 1), min_size=1, max_size=WIDTH, unique=True)
    paths = draw(st.lists(path.map(tuple), min_size=1, max_size=12))
    some = st.one_of(st.just(np.inf), st.floats(0.1, 1e3))
    return rates, paths, [draw(some) for _ in paths]


@given(networks())
@settings(max_examples=100)
def test_max_min_by_its_definition(
    made: tuple[list[float], list[tuple[int, ...]], list[float]],
) -> None:
    """A flow has what it wants, or a full link on which nobody has more."""
    rates, paths, demand = made
    links = np.full((len(paths), WIDTH), len(rates))
    for i, path in enumerate(paths):
        links[i, : len(path)] = path
    given_ = max_min(np.array([*rates, np.inf]), links, np.array(demand))
    used = [
        sum(given_[i] for i, path in enumerate(paths) if link in path) for link in range(len(rates))
    ]
    for load, rate in zip(used, rates, strict=True):
        assert load <= rate * (1 + 1e-9)
    for i, path in enumerate(paths):
        full = [link for link in path if used[link] >= rates[link] * (1 - 1e-9)]
        most = [max(given_[j] for j, other in enumerate(paths) if link in other) for link in full]
        has_all = given_[i] >= demand[i] * (1 - 1e-9)
        assert has_all or any(given_[i] >= other * (1 - 1e-9) for other in most)


@given(networks(), st.lists(st.integers(1, 10**6), min_size=12, max_size=12))
@settings(max_examples=50)
def test_a_network_carries_every_byte_over_every_link_of_its_path(
    made: tuple[list[float], list[tuple[int, ...]], list[float]], sizes: list[int]
) -> None:
    rates, paths, demand = made
    loop = Loop()
    network = Network(loop, [str(i) for i in range(len(rates))], rates)
    ended: list[int] = []
    for i, path in enumerate(paths):
        network.start(0.0, path, sizes[i], lambda now, i: ended.append(i), i, demand[i])
    loop.run()
    assert sorted(ended) == list(range(len(paths)))
    for link, rate in enumerate(rates):
        want = sum(sizes[i] for i, path in enumerate(paths) if link in path)
        assert network.carried[link] == pytest.approx(want, abs=2.0 * len(paths))
        assert network.carried[link] <= rate * loop.now * (1 + 1e-9)


# --- queueing theory --------------------------------------------------------------------------

Job = tuple[float, float]
"""When it arrives, and its size in seconds of the whole link."""


def poisson(jobs: int, rho: float, sizes: tuple[float, ...], seed: int) -> list[Job]:
    rng = random.Random(seed)
    time, made = 0.0, []
    mean = sum(sizes) / len(sizes)
    for _ in range(jobs):
        time += rng.expovariate(rho / mean)
        made.append((time, rng.choice(sizes)))
    return made


def fifo_waits(jobs: list[Job]) -> list[float]:
    """Lindley's recursion: each waits for what its predecessor waited and took, less the gap."""
    waits = [0.0]
    for (before, size), (arrival, _) in pairwise(jobs):
        waits.append(max(0.0, waits[-1] + size - (arrival - before)))
    return waits


def mean_with_control(values: list[float], control: list[float], known: float) -> float:
    """The mean of `values`, less the part of its noise that is seen in `control`, whose true mean
    is `known`: arrivals that come in crowds by chance show in both."""
    batches = 50
    x = np.array(control).reshape(batches, -1).mean(axis=1)
    y = np.array(values).reshape(batches, -1).mean(axis=1)
    slope = np.cov(x, y)[0, 1] / x.var(ddof=1)
    return float(y.mean() - slope * (x.mean() - known))


@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize("sizes", [(1.0,), (0.25, 0.25, 0.25, 3.25)])
def test_processor_sharing_is_as_slow_as_theory_says(rho: float, sizes: tuple[float, ...]) -> None:
    """M/G/1 PS: the mean time in the system is size / (1 - rho), whatever the sizes."""
    jobs = poisson(40_000, rho, sizes, seed=5)
    loop = Loop()
    link = SharedLink(loop, "link", RATE)
    times = [0.0] * len(jobs)

    def begin(now: float, i: int) -> None:
        link.start(now, jobs[i][1] * RATE, ended, i)

    def ended(now: float, i: int) -> None:
        times[i] = now - jobs[i][0]

    for i, (arrival, _) in enumerate(jobs):
        loop.at(arrival, Phase.ARRIVAL, begin, i)
    loop.run()
    mean = sum(sizes) / len(sizes)
    square = sum(size * size for size in sizes) / len(sizes)
    known = rho / mean * square / (2 * (1 - rho))
    measured = mean_with_control(times, fifo_waits(jobs), known)
    assert measured == pytest.approx(mean / (1 - rho), rel=0.01)
