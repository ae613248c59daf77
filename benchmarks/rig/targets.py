"""The numbers that the rig is there to show, each with what was measured. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.rig.arms import ARMS

Tree = dict[str, Any]
SPEEDUPS = {"1P1D": 1.85, "1P2D": 2.6}
"""`split` over `upstream_prefill_only` (limits 2.0 and 3.0)."""
ISOLATED_RATIO, ISOLATED_LOAD, ISOLATED_PAIRS = 1.8, 10.0, 20
PAYLOAD = (0.98, 1.02)
KERNEL_OVERHEAD = 0.06
ENOUGH_RUNS = 3
UNSHAPED_RATIO, UNSHAPED_PAIRS, TPOT_RATIO = 0.95, 5, 1.10


def targets(summary: Tree) -> list[Tree]:
    """One entry each: what, wanted, measured (None: not measured), reached."""
    found = []
    for topology, block in summary["topologies"].items():
        found += _speedup(topology, block)
        for name, arm in block["arms"].items():
            if arm["runs"]:
                found += _payload(f"{topology} {name}", name, arm)
    found += _isolated(summary["isolated"])
    return found + _unshaped(summary["unshaped"]) + _tpot(summary["tpot"])


def _entry(what: str, wanted: str, measured: float | None, reached: bool) -> Tree:
    shown = None if measured is None else round(measured, 4)
    return {"what": what, "wanted": wanted, "measured": shown, "reached": reached}


def _speedup(topology: str, block: Tree) -> list[Tree]:
    if topology not in SPEEDUPS:
        return []
    wanted = SPEEDUPS[topology]
    measured = block["speedup"].get("split")
    pair = [block["arms"].get(name, {}) for name in ("split", "upstream_prefill_only")]
    enough = all(arm.get("runs", 0) >= ENOUGH_RUNS for arm in pair)
    return [
        _entry(
            f"{topology}: turns/s of split over upstream_prefill_only",
            f">= {wanted}, medians of at least {ENOUGH_RUNS} runs",
            measured,
            measured is not None and enough and measured >= wanted,
        )
    ]


def _payload(where: str, name: str, arm: Tree) -> list[Tree]:
    """Each hit token is read from the store once; the wire adds little to the payload."""
    entries = []
    store, needed = arm["store_read_bytes"], arm["needed_bytes"]
    if ARMS[name].ours and store is not None and needed:
        ratio = store / needed
        low, high = PAYLOAD
        wanted = f"{low} to {high}"
        what = f"{where}: bytes read from the store over bytes needed"
        entries.append(_entry(what, wanted, ratio, low <= ratio <= high))
    if store and name != "recompute":
        overhead = sum(arm["nic_read_bytes"].values()) / store - 1
        what = f"{where}: bytes on the storage NICs over payload, less 1"
        entries.append(_entry(what, f"<= {KERNEL_OVERHEAD}", overhead, overhead <= KERNEL_OVERHEAD))
    return entries


def _isolated(isolated: Tree | None) -> list[Tree]:
    if isolated is None:
        return []
    pairs, ratio, load = isolated["pairs"], isolated["ratio"], isolated["load_over_unshaped"]
    return [
        _entry(
            "one request at a time: TTFT of prefill_path over split",
            f">= {ISOLATED_RATIO}, at least {ISOLATED_PAIRS} pairs",
            ratio,
            ratio >= ISOLATED_RATIO and pairs >= ISOLATED_PAIRS,
        ),
        _entry(
            "one request at a time: TTFT of prefill_path over that of the unshaped run",
            f">= {ISOLATED_LOAD}",
            load,
            load >= ISOLATED_LOAD,
        ),
    ]


def _unshaped(unshaped: Tree | None) -> list[Tree]:
    if unshaped is None:
        return []
    ratio, pairs, (low, high) = unshaped["ratio"], unshaped["pairs"], unshaped["spread"]
    return [
        _entry(
            f"storage unshaped: turns/s over upstream_decode_hicache (spread {low} to {high})",
            f">= {UNSHAPED_RATIO}, at least {UNSHAPED_PAIRS} pairs",
            ratio,
            ratio >= UNSHAPED_RATIO and pairs >= UNSHAPED_PAIRS,
        )
    ]


def _tpot(tpot: Tree | None) -> list[Tree]:
    if tpot is None:
        return []
    p99 = [tpot[side]["p99_spread"] for side in ("with_pulls", "without_pulls")]
    return [
        _entry(
            "time per token of running requests while pulls run over the same without "
            f"(spread of p99 in ms: {p99[0]}, without {p99[1]})",
            f"<= {TPOT_RATIO}",
            tpot["ratio"],
            tpot["ratio"] <= TPOT_RATIO,
        )
    ]
