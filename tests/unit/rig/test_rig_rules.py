"""The rules and the targets, on summaries made by hand: a good one, then one thing wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay.stats import summary as percentiles
from benchmarks.rig import report, summary
from benchmarks.rig.arms import ARMS, Job
from benchmarks.rig.bench import EXTRAS
from benchmarks.rig.isolated import result as isolated_result
from benchmarks.rig.runfile import RUN_SCHEMA
from benchmarks.rig.unshaped import tpot_result, unshaped_result
from dualpath_sglang.contract.errors import ConfigError

Tree = dict[str, Any]
RATES = {
    "upstream_prefill_only": 0.5,
    "upstream_decode_hicache": 0.5,
    "prefill_path": 0.5,
    "decode_path": 0.5,
    "round_robin": 0.9,
    "shorter_queue": 0.85,
    "split": 0.95,
    "oracle": 2.0,
    "recompute": 0.3,
}
MB = 1_000_000


def config(arm: str) -> Tree:
    return {
        "hooks": ARMS[arm].hooks,
        "shaped": ARMS[arm].shaped,
        "split": ARMS[arm].split,
        "nic_bits_per_s": 40 * MB,
        "model": {"layers": 4},
        "attention_backend": "torch_native",
        "prefill_pools": {"tokens": 8192, "host_tokens": 24576, "engines": 1},
        "decode_pools": {"tokens": 16384, "host_tokens": 32768, "engines": 1},
        "prefetch_policy": "wait_complete",
        "page_size": 16,
        "router": "round robin",
        "trace": "abc",
        "sessions": 16,
        "working_set": 64_000,
        "flags": {},
    }


def a_run(arm: str, index: int, **changes: Any) -> Tree:
    """A run of 1P1D in which 100 MB are loaded."""
    ours, split = ARMS[arm].ours, arm == "split"
    loads = arm != "recompute"
    nic = {"p1": 52 * MB if split else 104 * MB, "d1": 52 * MB if split else 0}
    paths = {
        "store_to_prefill": 50 * MB,
        "store_to_decode": 50 * MB,
        "decode_to_prefill": 50 * MB,
        "prefill_to_decode": 0,
    }
    return {
        "schema": RUN_SCHEMA,
        "topology": "1P1D",
        "arm": arm,
        "index": index,
        "digest": "d",
        "config": config(arm),
        "turns_per_s": RATES[arm] + 0.01 * index,
        "window_s": 100.0,
        "window_turns": 50,
        "wall_s": 120.0,
        "jct_s": percentiles([10.0, 20.0]),
        "ttft_ms": percentiles([1000.0, 3000.0]),
        "tpot_ms": percentiles([10.0]),
        "errors": 0,
        "completed_turns": 80,
        "prompt_tokens": 100_000,
        "computed_tokens": 2_000,
        "hit_tokens": {"device": 0, "host": 0, "storage": 98_000 if loads else 0, "peer": 0},
        "hit_tokens_decode": None,
        "from_storage": 1.0 if loads else None,
        "planned_bytes": dict.fromkeys(list(paths)[:3], 50 * MB),
        "needed_bytes": 100 * MB if loads else 0,
        "fallbacks": {"prefill: late": 1},
        "cpu_s": {"p1": 20.0, "d1": 10.0},
        "cpu_busy_share": 0.5,
        "cpu_foreign_share": 0.02,
        "nic_read_bytes": nic if loads else {"p1": 100, "d1": 100},
        "nic_written_bytes": {"p1": 1, "d1": 1},
        "compute_read_bytes": {"p1": 1, "d1": 1},
        "nic_max_over_avg": 1.0 if split else 2.0,
        "store_read_bytes": 100 * MB if loads else 0,
        "store_read_source": "plugin" if ours else "sglang",
        "peer_bytes": 50 * MB if split else 0,
        "path_bytes": paths if ours else None,
        "turn_records": [],
        "session_records": [],
        **changes,
    }


def all_runs() -> list[Tree]:
    return [a_run(arm, index) for arm in ARMS for index in range(3)]


LONE = isolated_result(
    {"prefill_path": [2000.0] * 20, "split": [1050.0] * 20}, [150.0, 160.0, 170.0]
)


UNSHAPED = unshaped_result(
    {"split": [2.0] * 5, "upstream_decode_hicache": [2.0, 2.1, 2.0, 2.05, 1.9]},
    {"prefill_path": 2.0, "decode_path": 1.9},
)
TPOT = tpot_result(
    {"prefill_path": [[6.0, 6.2, 9.0]] * 3, "decode_path": [[6.1, 6.3, 12.0]] * 3},
)


def built(runs: list[Tree], failures: dict[str, str] | None = None) -> Tree:
    extras = {"isolated": LONE, "unshaped": UNSHAPED, "tpot": TPOT}
    settings = {"lease_s": {"rig": 60.0, "default": 30.0}}
    return summary.build(runs, extras, failures or {}, {"settings": settings})


def test_a_good_summary() -> None:
    made = built(all_runs())
    assert made["valid"]
    assert made["broken_rules"] == []
    arms = made["topologies"]["1P1D"]["arms"]
    assert list(arms) == list(ARMS)
    split = arms["split"]
    assert split["runs"] == 3
    assert split["turns_per_s"] == pytest.approx(0.96)
    assert split["ttft_ms"]["p50"] == 2000.0
    assert split["nic_read_bytes"] == {"p1": 52 * MB, "d1": 52 * MB}
    assert split["fallbacks"] == {"prefill: late": 3}
    assert made["topologies"]["1P1D"]["speedup"]["split"] == pytest.approx(0.96 / 0.51, abs=1e-3)
    assert made["isolated_ttft_ratio"] == pytest.approx(2000 / 1050, abs=1e-3)
    reached = {target["what"]: target["reached"] for target in made["targets"]}
    assert all(reached.values()), reached
    json.dumps(made, allow_nan=False)


Change = Callable[[Tree], None]


def both(field: str, value: Any) -> Change:
    return lambda run: run["config"].__setitem__(field, value)


def field(name: str, value: Any) -> Change:
    return lambda run: run.__setitem__(name, value)


@pytest.mark.parametrize(
    ("arm", "change", "words"),
    [
        ("split", both("prefetch_policy", "timeout"), "prefetch_policy of 1P1D split differs"),
        ("oracle", both("trace", "other"), "trace of 1P1D oracle differs"),
        ("recompute", both("attention_backend", "x"), "attention_backend of 1P1D recompute"),
        (
            "split",
            both("prefill_pools", {"tokens": 1, "host_tokens": 2, "engines": 1}),
            "prefill_pools of",
        ),
        ("oracle", both("hooks", "all"), "ran with hooks 'all' instead of 'cpu'"),
        ("split", both("hooks", "cpu"), "ran with hooks 'cpu' instead of 'all'"),
        ("oracle", both("shaped", True), "its storage NICs were shaped"),
        ("split", both("shaped", False), "its storage NICs were not shaped"),
        ("split", both("working_set", 30_000), "decode_pools hold 32768 tokens"),
        (
            "split",
            both("decode_pools", {"tokens": 9, "host_tokens": 33_000, "engines": 2}),
            "decode_pools hold 66000 tokens",
        ),
        ("split", field("errors", 2), "sessions failed"),
        ("oracle", field("prompt_tokens", 110_000), "only 89.1% of the prompt tokens were hits"),
        ("round_robin", field("from_storage", 0.89), "only 89.0% of the hit tokens came off"),
        ("split", field("window_turns", 15), "only 15 turns while all"),
        ("split", field("cpu_foreign_share", 0.4), "other work took 40% of the machine's CPUs"),
        ("recompute", field("turns_per_s", 0.4), "not 1.3x"),
        (
            "split",
            field(
                "planned_bytes",
                dict.fromkeys(
                    ("store_to_prefill", "store_to_decode", "decode_to_prefill"), 54 * MB
                ),
            ),
            "decode_to_prefill carried 92.6%",
        ),
    ],
)
def test_a_broken_rule_is_named(arm: str, change: Change, words: str) -> None:
    runs = all_runs()
    for run in runs:
        if run["arm"] == arm:
            change(run)
    made = built(runs)
    assert not made["valid"]
    assert any(words in text for text in made["broken_rules"]), made["broken_rules"]


def test_one_run_with_other_settings_is_seen() -> None:
    runs = all_runs()
    runs[1]["config"]["page_size"] = 64
    broken = built(runs)["broken_rules"]
    assert broken == ["1P1D upstream_prefill_only: its runs were made with different settings"]


def test_recompute_needs_no_hits_and_split_alone_is_judged_by_its_plans() -> None:
    runs = [a_run("recompute", 0), a_run("decode_path", 0, planned_bytes={})]
    assert built(runs)["valid"]


def test_a_topology_of_its_own_is_compared_too() -> None:
    runs = all_runs()
    other = a_run("split", 0) | {"topology": "1P2D"}
    other["config"]["router"] = "another"
    assert "router of 1P2D split differs" in built([*runs, other])["broken_rules"][0]


def test_targets_that_are_missed() -> None:
    runs = [r | {"turns_per_s": 0.8} if r["arm"] == "split" else r for r in all_runs()]
    for run in runs:
        if run["arm"] == "decode_path":
            run["store_read_bytes"] = 110 * MB
    missed = [t for t in built(runs)["targets"] if not t["reached"]]
    assert [t["what"] for t in missed] == [
        "1P1D: turns/s of split over upstream_prefill_only",
        "1P1D decode_path: bytes read from the store over bytes needed",
    ]


def test_what_loading_costs_where_storage_is_no_bottleneck() -> None:
    assert UNSHAPED["ratio"] == pytest.approx(1.0)
    assert UNSHAPED["spread"] == [
        pytest.approx(2.0 / 2.1, abs=1e-4),
        pytest.approx(1.0526, abs=1e-4),
    ]
    assert TPOT["ratio"] == pytest.approx(6.3 / 6.2, abs=1e-4)
    assert TPOT["with_pulls"]["p99"] > TPOT["without_pulls"]["p99"]


def test_too_few_runs_reach_no_target() -> None:
    made = built([a_run("split", 0), a_run("upstream_prefill_only", 0)])
    assert made["targets"][0]["measured"] == pytest.approx(1.9)
    assert not made["targets"][0]["reached"]


def test_an_arm_without_a_run_is_shown_with_its_reason() -> None:
    made = built([a_run("oracle", 0)], {"1P1D/split": "no turn had a plan"})
    assert made["topologies"]["1P1D"]["arms"]["split"]["unavailable"] == "no turn had a plan"
    assert made["valid"]
    text = report.as_text(made)
    assert "no turn had a plan" in text
    assert "not measured" in text


def test_report_files(tmp_path: Path) -> None:
    made = built(all_runs(), {"1P2D/split": "engines did not start"})
    report.write(tmp_path, made)
    text = (tmp_path / "report.txt").read_text()
    assert text.splitlines()[0] == "1P1D (limit 2.0x)"
    assert all(arm in text for arm in ARMS)
    assert "lease_s 60 (30)" in text
    assert text.rstrip().endswith("valid")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


def test_an_empty_summary() -> None:
    made = summary.build([], dict.fromkeys(EXTRAS), {}, {})
    assert made["topologies"] == {}
    assert report.plot(made).startswith(b"\x89PNG")


def test_run_files(tmp_path: Path) -> None:
    job = Job("1P1D", "split", 1)
    summary.write_json(summary.run_path(tmp_path, job), a_run("split", 1))
    runs = summary.read_runs(tmp_path)
    assert [run["index"] for run in runs] == [1]
    summary.check_digest(runs, "d")
    with pytest.raises(ConfigError, match="other settings"):
        summary.check_digest(runs, "e")
    assert summary.read_extra(tmp_path, "isolated") is None
    summary.write_json(tmp_path / "isolated.json", LONE)
    assert summary.read_extra(tmp_path, "isolated") == LONE
    (tmp_path / "runs" / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match="schema"):
        summary.read_runs(tmp_path)
