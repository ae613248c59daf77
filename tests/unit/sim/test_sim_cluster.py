"""A whole cluster: what is conserved, that it finishes, that it is the same every time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.replay.trace import Session, Turn
from benchmarks.sim.cluster import Cluster, Setting
from benchmarks.sim.constants import Constants, with_changes
from benchmarks.sim.exact_fabric import ExactFabric
from benchmarks.sim.fabric import SharedFabric
from benchmarks.sim.models import DS_27B, QWEN_32B, named
from benchmarks.sim.run import Workload, simulate
from benchmarks.sim.systems import Blocking, Quota, System, ladder
from benchmarks.sim.trajectories import from_sessions
from dualpath_sglang.contract.errors import ConfigError

PAGE = 64
SMALL = replace(Constants(), gpus_per_node=2)


@st.composite
def sessions(draw: st.DrawFn) -> list[Session]:
    made = []
    for number in range(draw(st.integers(1, 5))):
        turns: list[Turn] = []
        for _ in range(draw(st.integers(1, 4))):
            context = turns[-1].context if turns else 0
            keep = context if draw(st.booleans()) else draw(st.integers(0, context))
            out = draw(st.integers(1, 300))
            gap = draw(st.sampled_from([None, 0.0, 2.5]))
            turns.append(Turn(keep, draw(st.integers(1, 4000)), out, out, gap))
        made.append(Session("d", str(number), tuple(turns)))
    return made


systems = st.builds(
    lambda name, blocking, quota: ladder(blocking, quota)[name],
    st.sampled_from(["basic", "+layerwise", "+dual path", "paper", "oracle"]),
    st.sampled_from(list(Blocking)),
    st.sampled_from(list(Quota)),
)
shapes = st.sampled_from([(1, 1), (1, 2), (2, 1)])
models = st.sampled_from([DS_27B, QWEN_32B])


def finished(setting: Setting, made: list[Session], arrivals: list[float] | None = None) -> Cluster:
    cluster = Cluster(setting, from_sessions(made, PAGE), range(len(made)))
    cluster.start(arrivals)
    cluster.loop.run(until=1e6)
    assert cluster.agents_left == 0, "somebody waits for ever"
    return cluster


@given(made=sessions(), system=systems, shape=shapes, model=models, exact=st.booleans())
@settings(max_examples=60, deadline=None)
def test_tokens_and_bytes_are_conserved(
    made: list[Session], system: System, shape: tuple[int, int], model: object, exact: bool
) -> None:
    links = "exact" if exact else "shared"
    setting = Setting(model, system, *shape, SMALL, links)  # type: ignore[arg-type]
    cluster = finished(setting, made)
    lists, meter, size = cluster.trajectories, cluster.meter, cluster.setting.model.token_bytes
    assert meter.turns == len(lists.hit) == len(meter.ttft)
    assert sum(group.tokens for group in cluster.prefill) == sum(lists.new) == meter.new_tokens
    # The first token of every turn comes from prefill, and a turn of one token needs no decode.
    decoded = sum(out for out in lists.out if out > 1)
    assert sum(group.tokens for group in cluster.decode) == decoded
    assert meter.output_tokens == sum(lists.out)
    wanted = 0.0 if system.local else sum(lists.hit) * size
    assert sum(cluster.fabric.loaded) == pytest.approx(wanted)
    assert sum(cluster.fabric.storage_served(cluster.loop.now)) == pytest.approx(
        wanted, abs=2.0 * len(lists.hit)
    )
    if not system.local:
        fabric, prompts = cluster.fabric, [h + n for h, n in zip(lists.hit, lists.new, strict=True)]
        # D gets of each prompt what it has not read itself, copies all of it into HBM where there
        # is something to decode, and copies out what is stored.
        copied = sum(p for p, out in zip(prompts, lists.out, strict=True) if out > 1)
        lacking = (sum(prompts) + copied) * size - sum(fabric.loaded[shape[0] :])
        assert sum(fabric.written[shape[0] * 2 :]) == pytest.approx(lacking + sum(fabric.saved))


@given(made=sessions(), system=systems, shape=shapes, exact=st.booleans())
@settings(max_examples=40, deadline=None)
def test_everything_is_idle_at_the_end(
    made: list[Session], system: System, shape: tuple[int, int], exact: bool
) -> None:
    setting = Setting(DS_27B, system, *shape, SMALL, "exact" if exact else "shared")
    cluster = finished(setting, made)
    assert all(group.idle for group in cluster.prefill)
    assert all(group.running == 0 for group in cluster.decode)
    for group in cluster.decode:
        assert [group.held(i) for i in range(len(group.gpus))] == [0.0] * len(group.gpus)
    assert all(room.idle for room in cluster.buffers or ())
    if isinstance(cluster.fabric, SharedFabric):
        for link in (*cluster.fabric.storage, *cluster.fabric.saves, *cluster.fabric.compute):
            assert link.flows == 0
            assert link.reserved == pytest.approx(0.0, abs=1.0)
            assert link.served <= link.rate * link.busy_s * (1 + 1e-9) + 1
    else:
        assert isinstance(cluster.fabric, ExactFabric)
        network = cluster.fabric.network
        assert network.flows == 0
        assert (network.carried[:-1] <= network.rates[:-1] * cluster.loop.now * (1 + 1e-9)).all()


@given(made=sessions(), system=systems, shape=shapes)
@settings(max_examples=20, deadline=None)
def test_the_same_input_gives_the_same_result(
    made: list[Session], system: System, shape: tuple[int, int]
) -> None:
    setting = Setting(DS_27B, system, *shape, SMALL)
    workload = Workload("w", from_sessions(made, PAGE), range(len(made)))
    first, second = (replace(simulate(setting, workload), cpu_s=0.0) for _ in range(2))
    assert first == second


@given(made=sessions(), shape=shapes)
@settings(max_examples=20, deadline=None)
def test_links_one_by_one_and_together_agree_when_nothing_is_crowded(
    made: list[Session], shape: tuple[int, int]
) -> None:
    """With compute NICs to spare nothing is approximated."""
    wide = with_changes(SMALL, {"cnic_bytes_per_s": 5e13, "dram_bytes_per_s": 5e15})
    system = ladder(Blocking.FREE, Quota.FORWARD)["+dual path"]
    shared, exact = (
        finished(Setting(DS_27B, system, *shape, wide, links), made).meter.jct
        for links in ("shared", "exact")
    )
    assert shared == pytest.approx(exact, rel=1e-4, abs=1e-3)


def test_a_turn_takes_what_its_steps_take() -> None:
    """One agent, two turns, by hand."""
    made = [Session("d", "s", (Turn(0, 6400, 11, 11), Turn(6411, 100, 21, 21)))]
    constants = with_changes(SMALL, {"fetch_s": 1.0})
    system = ladder(Blocking.FREE, Quota.NONE)["+layerwise"]
    cluster = finished(Setting(DS_27B, system, 1, 1, constants), made)
    prefill, decode = cluster.prefill[0], cluster.decode[0]
    size, nic = DS_27B.token_bytes, constants.cnic_bytes_per_s
    cost, steps = prefill._cost, decode._cost
    time = 0.0  # the first fetch is at once
    for hit, new, out in ((0, 6400, 11), (6400, 111, 21)):
        time += hit * size / constants.snic_bytes_per_s
        time += cost.forward_s(cost.attention_s(hit, new), new, new)
        time += (hit + new) * size / nic
        time += (out - 1) * (steps.base_s + steps.reading_s(hit + new + out / 2))
        ended = time
        time = -(-time // 1.0) * 1.0  # the next fetch
    assert cluster.meter.jct == [pytest.approx(ended, rel=1e-6)]


def one_at_a_time(turns: int, rho: float) -> tuple[list[float], list[float], float]:
    """Poisson arrivals at one GPU that computes one turn at a time: arrivals, times to the first
    token in the order of arrival, and the time one turn takes."""
    tokens = 512
    constants = with_changes(Constants(), {"gpus_per_node": 1, "max_forward_tokens": tokens})
    system = System("md1", placement="round_robin", on_arrival=True, local=True)
    setting = Setting(QWEN_32B, system, 1, 1, constants)
    one = from_sessions([Session("d", "s", (Turn(0, tokens, 1, 1),))], PAGE)
    service = simulate(setting, Workload("w", one, [0])).ttft_mean
    rng = random.Random(3)
    time, arrivals = 0.0, []
    for _ in range(turns):
        time += rng.expovariate(rho / service)
        arrivals.append(time)
    cluster = Cluster(setting, one, [0] * turns)
    cluster.start(arrivals)
    cluster.loop.run(until=2 * time)
    return arrivals, list(cluster.meter.ttft), service


def test_md1() -> None:
    """Turn by turn Lindley's recursion, and on average rho * service / (2 * (1 - rho)) of waiting:
    within 1 % of the time to the first token."""
    rho = 0.5
    arrivals, times, service = one_at_a_time(60_000, rho)
    wait = 0.0
    for i, time in enumerate(times[:3000]):
        assert time == pytest.approx(wait + service, rel=1e-4)
        wait = max(0.0, wait + service - (arrivals[i + 1] - arrivals[i]))
    expected = service + rho * service / (2 * (1 - rho))
    assert sum(times) / len(times) == pytest.approx(expected, rel=0.01)


# --- input that cannot be ---------------------------------------------------------------------


def test_bad_input_is_one_clear_line() -> None:
    system = ladder(Blocking.FREE, Quota.NONE)["basic"]
    with pytest.raises(ConfigError, match=r"^no model 'llama9'; known: ds660b, ds27b, qwen32b$"):
        named("llama9")
    with pytest.raises(ConfigError, match=r"^snic_bytes_per_s must be above 0, not 0$"):
        with_changes(Constants(), {"snic_bytes_per_s": 0})
    with pytest.raises(ConfigError, match=r"^no constant 'nic'; known: "):
        with_changes(Constants(), {"nic": 1})
    with pytest.raises(ConfigError, match=r"^prefill_nodes must be above 0, not 0$"):
        Setting(DS_27B, system, 0, 1)
    with pytest.raises(ConfigError, match=r"^ds660b: its weights leave no HBM for KV on a prefill"):
        Setting(named("ds660b"), system, 1, 4)
    long = from_sessions([Session("d", "s", (Turn(0, 163_840, 1, 1),))], PAGE)
    with pytest.raises(ConfigError, match=r"^trajectory 0, turn 0: 163841 tokens, more than the "):
        Cluster(Setting(DS_27B, system, 1, 1), long, [0])
