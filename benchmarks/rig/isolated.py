"""One request at a time: what a split read does for the time to first token, without queues.

Engines cold (flushed before each request), store warm, `prefill_path` and `split` in alternating
order. Both routers run beside each other on the same engines.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.rig.arms import ARMS, TOPOLOGIES, Topology
from benchmarks.rig.runfile import RUN_SCHEMA
from benchmarks.rig.runner import RunFailed, Runner
from benchmarks.rig.workload import only_first_turn

TOPOLOGY = "1P1D"
ORDER = ("prefill_path", "split")
UNSHAPED_REQUESTS = 5


def isolated(runner: Runner, pairs: int) -> dict[str, Any]:
    """TTFT of `pairs` alternating pairs, and of a few requests on unshaped NICs."""
    topology = TOPOLOGIES[TOPOLOGY]
    engines = runner.prepare(topology, ARMS["split"])
    urls = {key: engines.url(ARMS[key]) for key in ORDER}
    # The first request of an engine's life is slower: not measured.
    for key in ORDER:
        one(runner, urls[key], 0, f"warm-up {key}")
    unshaped = [
        one(runner, urls["prefill_path"], i, f"unshaped {i + 1}/{UNSHAPED_REQUESTS}")
        for i in range(UNSHAPED_REQUESTS)
    ]
    ttft = alternate(runner, topology, urls, pairs)
    config = runner.config
    used = {"nic_bits_per_s": config.isolated_nic_bits_per_s, "digest": config.digest}
    return result(ttft, unshaped) | used


def alternate(
    runner: Runner, topology: Topology, urls: dict[str, str], pairs: int
) -> dict[str, list[float]]:
    """TTFT in ms by arm; every second pair goes the other way round."""
    runner.shape(topology, runner.config.isolated_nic_bits_per_s)
    ttft: dict[str, list[float]] = {key: [] for key in ORDER}
    for pair in range(pairs):
        for key in ORDER if pair % 2 == 0 else ORDER[::-1]:
            label = f"isolated {pair + 1}/{pairs} {key}"
            ttft[key].append(one(runner, urls[key], pair, label))
    runner.shape(topology, 0)
    return ttft


def one(runner: Runner, url: str, index: int, label: str) -> float:
    """TTFT in ms of one lone request on cold engines. Raises RunFailed."""
    session = only_first_turn(runner.workload.sessions, index).measured()
    runner.flush(url)
    seen = runner.drive([session], label, url)
    ttft = seen.turns[0].ttft_ms if seen.turns else None
    if ttft is None:
        raise RunFailed(f"{label}: {seen.sessions[0].error}")
    return ttft


def result(ttft: dict[str, list[float]], unshaped: list[float]) -> dict[str, Any]:
    """`ratio`: of medians, prefill path over split. Pure."""
    middle = {key: median(values) for key, values in ttft.items()}
    base = median(unshaped)
    return {
        "schema": RUN_SCHEMA,
        "topology": TOPOLOGY,
        "pairs": len(ttft["split"]),
        "ratio": round(middle["prefill_path"] / middle["split"], 4),
        "load_over_unshaped": round(middle["prefill_path"] / base, 4),
        "median_ttft_ms": {**middle, "unshaped": base},
        "ttft_ms": ttft,
        "unshaped_ttft_ms": unshaped,
    }
