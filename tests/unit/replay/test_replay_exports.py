"""Results in the forms of other benchmarks: their names, units and meanings."""

from __future__ import annotations

import ast
import json
import statistics
from array import array
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_stub_router import StubRouter, served

from agent_runtime.cli import main as dualpath
from benchmarks.replay import export_aiperf, export_sglang
from benchmarks.replay.records import TokenTimes
from benchmarks.replay.results import read_result

OURS = {
    "mean_jct_ms", "median_jct_ms", "std_jct_ms", "p90_jct_ms", "p95_jct_ms", "p99_jct_ms",
    "sessions", "failed_sessions", "session_rate",
}  # fmt: skip


def run(tmp_path: Path, *more: str, faults: dict[int, str] | None = None) -> dict[str, Any]:
    """The report of a replay of four sessions; the other files lie beside it."""
    stub = StubRouter()
    stub.faults, stub.fault_session = faults or {}, "seed0-00000"
    with served(stub.app()) as url:
        dualpath(
            ["replay", "--url", url, "--out", str(tmp_path), "--vocab-size", "500",
             "--generate", "32k", "--scale", "0.01", "--sessions", "4", "--turns", "5",
             "--min-turns", "5", *more]
        )  # fmt: skip
    return read_result(tmp_path)


def sglang_line(tmp_path: Path) -> dict[str, Any]:
    (line,) = (tmp_path / export_sglang.FILE).read_text().splitlines()
    return dict(json.loads(line))


def aiperf_file(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / export_aiperf.FILE).read_text()))


def keys_of_bench_serving() -> tuple[set[str], set[str]]:
    """The keys of the result, and of its cache report, in the source of the installed SGLang."""
    spec = find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "benchmark" / "serving.py"
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            found.append({key.value for key in node.keys if isinstance(key, ast.Constant)})
    (result,) = (keys for keys in found if "mean_e2e_latency_ms" in keys)
    (report,) = (keys for keys in found if "cache_hit_rate_pct" in keys)
    return result, report


def test_the_line_has_the_keys_of_bench_serving(tmp_path: Path) -> None:
    run(tmp_path)
    line = sglang_line(tmp_path)
    result, report = keys_of_bench_serving()
    assert line.keys() == result | {"cache_report"} | OURS
    assert line["cache_report"].keys() == report | {"peer_cached_tokens"}


def test_what_the_line_says(tmp_path: Path) -> None:
    result = run(tmp_path, "--concurrency", "2")
    line, records = sglang_line(tmp_path), result["turn_records"]
    assert (line["completed"], line["sessions"], line["failed_sessions"]) == (20, 4, 0)
    assert (line["request_rate"], line["max_concurrency"]) == ("inf", 2)
    assert line["total_input_tokens"] == result["prompt_tokens"]
    assert line["total_output_tokens"] == result["output_tokens"]
    assert line["request_throughput"] == pytest.approx(20 / result["wall_s"])
    latency = [turn["e2e_ms"] for turn in records]
    assert line["mean_e2e_latency_ms"] == pytest.approx(statistics.mean(latency))
    assert line["std_e2e_latency_ms"] == pytest.approx(statistics.pstdev(latency))
    assert line["median_ttft_ms"] == pytest.approx(
        statistics.median(turn["ttft_ms"] for turn in records)
    )
    assert line["concurrency"] == pytest.approx(sum(latency) / 1e3 / result["wall_s"])
    assert 1 <= line["max_concurrent_requests"] <= 2 * 20
    assert 1 <= line["max_output_tokens_per_s"] <= result["output_tokens"]
    assert 0 < line["median_itl_ms"] <= line["p99_itl_ms"]
    cached = sum(turn["prefill"]["device"] for turn in records)
    assert line["cache_report"]["device_cached_tokens"] == cached
    assert line["cache_report"]["total_cached_tokens"] == cached


def test_arrivals_at_a_rate(tmp_path: Path) -> None:
    run(tmp_path, "--rate", "100")
    line = sglang_line(tmp_path)
    assert (line["request_rate"], line["session_rate"]) == ("trace", 100.0)


@given(st.lists(st.integers(0, 10**6).map(lambda micro: micro / 1e6), max_size=40))
def test_times_between_tokens_add_up(at: list[float]) -> None:
    """One for each token after the first event; together they are the time of decoding."""
    times = TokenTimes(array("d", sorted(at)))
    gaps = export_sglang.between_tokens(times)
    first = sum(time == min(at) for time in at)
    assert len(gaps) == len(at) - first
    assert sum(gaps) == pytest.approx(max(at, default=0) - min(at, default=0))
    assert all(gap > 0 for gap in gaps)


AIPERF_UNITS = {
    "request_throughput": "requests/sec",
    "request_latency": "ms",
    "request_count": "requests",
    "error_request_count": "requests",
    "time_to_first_token": "ms",
    "time_to_second_token": "ms",
    "inter_token_latency": "ms",
    "inter_chunk_latency": "ms",
    "output_token_throughput": "tokens/sec",
    "total_token_throughput": "tokens/sec",
    "output_token_throughput_per_user": "tokens/sec/user",
    "output_sequence_length": "tokens",
    "input_sequence_length": "tokens",
    "usage_prompt_cache_read_tokens": "tokens",
    "goodput": "requests/sec",
    "good_request_count": "requests",
    "total_isl": "tokens",
    "total_osl": "tokens",
    "benchmark_duration": "sec",
    "job_completion_time": "ms",
    "turns_per_session": "requests",
}
STATISTICS = {"avg", "min", "max", "std", "sum", "count"} | {
    f"p{percent}" for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99)
}


def test_the_export_has_the_names_and_units_of_aiperf(tmp_path: Path) -> None:
    run(tmp_path, "--goodput", "ttft:100000", "tpot:100000")
    export = aiperf_file(tmp_path)
    metrics = {n: v for n, v in export.items() if isinstance(v, dict) and "unit" in v}
    assert {name: metric["unit"] for name, metric in metrics.items()} == AIPERF_UNITS
    assert export["schema_version"] == "1.4"
    for name, metric in metrics.items():
        single = {"unit", "avg"}
        assert metric.keys() in (single, {"unit"} | STATISTICS), name
    assert (export["was_cancelled"], export["is_complete"]) == (False, True)
    assert export["start_time"] < export["end_time"]


def test_what_the_export_says(tmp_path: Path) -> None:
    result = run(tmp_path, faults={2: "event"})
    export, records = aiperf_file(tmp_path), result["turn_records"]
    done = [turn for turn in records if turn["error"] is None]
    assert export["request_count"]["avg"] == 17
    assert export["error_request_count"]["avg"] == 1
    assert export["job_completion_time"]["count"] == 3
    assert export["turns_per_session"]["min"] == 2
    assert export["input_sequence_length"]["sum"] == sum(turn["prompt_tokens"] for turn in done)
    assert export["total_osl"]["avg"] == result["output_tokens"]
    one = max(turn["ttft_ms"] for turn in done)
    assert export["time_to_first_token"]["max"] == one
    paced = [turn["tpot_ms"] for turn in done if turn["tpot_ms"] is not None]
    assert export["inter_token_latency"]["avg"] == pytest.approx(statistics.mean(paced))
    assert export["error_summary"] == [
        {
            "error_details": {"code": 502, "type": "engine_failure", "message": "P died"},
            "count": 1,
        }
    ]


def test_a_replay_in_which_nothing_works_has_files_too(tmp_path: Path) -> None:
    dualpath(
        ["replay", "--url", "http://127.0.0.1:9", "--out", str(tmp_path), "--vocab-size", "500",
         "--generate", "32k", "--scale", "0.01", "--sessions", "2"]
    )  # fmt: skip
    line, export = sglang_line(tmp_path), aiperf_file(tmp_path)
    assert (line["completed"], line["failed_sessions"], line["mean_ttft_ms"]) == (0, 2, 0.0)
    assert export["request_count"]["avg"] == 0
    assert "time_to_first_token" not in export
    assert export["error_summary"][0]["count"] == 2


def test_aiperf_itself_reads_the_export(tmp_path: Path) -> None:
    """Where it is installed; it is none of this project's dependencies."""
    models = pytest.importorskip("aiperf.common.models.export_models")
    result = run(tmp_path, "--goodput", "ttft:100000", "tpot:100000", faults={2: "event"})
    read = models.JsonExportData.model_validate(aiperf_file(tmp_path))
    assert read.request_count.avg == result["completed_turns"]
    assert read.schema_version == models.JsonExportData.SCHEMA_VERSION
