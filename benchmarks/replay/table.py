"""The summary as rows of (what, value): printed at the end and shown on top of the report."""

from __future__ import annotations

from typing import Any


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    load = result["workload"]
    made = [
        ("workload", f"{load['source']}, scale {load['scale']:g}, seed {load['seed']}"),
        ("sessions x turns", f"{result['sessions']} sessions, {result['turns']} turns"),
        ("longest context", f"{load['longest_context']:,} tokens"),
        ("appended", _appended(load)),
        ("errors", str(result["errors"])),
        ("outputs equal", _equality(result)),
        ("wall time", f"{result['wall_s']:.1f} s"),
        ("JCT", _percentiles(result["jct_s"], "s")),
        ("TTFT", _percentiles(result["ttft_ms"], "ms")),
        ("TTST", _percentiles(result["ttst_ms"], "ms")),
        ("TPOT", _percentiles(result["tpot_ms"], "ms")),
        ("throughput", _throughput(result["throughput"])),
        ("prefill: cached", _tiers(result["cached_tokens"], result["prompt_tokens"])),
        ("prefill: computed", _share(result["computed_tokens"], result["prompt_tokens"])),
        ("decode: cached", _tiers(result["cached_tokens_decode"], result["prompt_tokens"])),
    ]
    if result["goodput"] is not None:
        made.append(("goodput", _goodput(result["goodput"])))
    for stop in result["midway"]:
        made.append(("midway", f"after turn {stop['after_turn']}, at {stop['at_s']:.1f} s"))
    return made


def _appended(load: dict[str, Any]) -> str:
    text = load["text"]
    if text is None:
        return f"{load['append_tokens']:,} tokens, by counts"
    return (
        f"text, {text['replayed_tokens']:,} tokens ({text['tokens']:,} before scaling, "
        f"{text['recorded_tokens']:,} recorded)"
    )


def as_text(result: dict[str, Any]) -> str:
    lines = rows(result)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _equality(result: dict[str, Any]) -> str:
    comparison = result["comparison"]
    if comparison is None:
        return "not compared"
    counted = f"{comparison['compared_turns']} of {result['turns']} turns compared"
    if result["outputs_equal"]:
        return f"yes, {counted} token for token"
    first = comparison["first_difference"]
    if first is None:
        return f"NO, {counted}"
    return (
        f"NO, {counted}, {comparison['differing_turns']} differ; first: session "
        f"{first['session']} turn {first['turn']} position {first['position']} "
        f"(run {first['run']}, reference {first['reference']})"
    )


def _percentiles(stats: dict[str, Any], unit: str) -> str:
    if not stats["count"]:
        return "no samples"
    return "  ".join(f"{name} {stats[name]:,.1f} {unit}" for name in ("p50", "p90", "p99"))


def _throughput(rates: dict[str, float]) -> str:
    return (
        f"{rates['turns_per_s']:.2f} turns/s, {rates['prompt_tokens_per_s']:,.0f} prompt tokens/s, "
        f"{rates['output_tokens_per_s']:,.1f} output tokens/s"
    )


def _tiers(counts: dict[str, int | None], total: int) -> str:
    known = {tier: count for tier, count in counts.items() if count is not None}
    if not known:
        return "not reported"
    return ", ".join(f"{tier} {_share(count, total)}" for tier, count in known.items())


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)" if total else f"{count:,}"


def _goodput(good: dict[str, Any]) -> str:
    verdict = ""
    if good["met"] is not None:
        word = "met" if good["met"] else "MISSED"
        verdict = f": {word}, {100 * good['required_fraction']:g} % are required"
    return (
        f"{good['good_turns_per_s']:.2f} turns/s, {100 * good['good_fraction']:.1f} % of turns "
        f"within TTFT {good['ttft_limit_ms']:g} ms and TPOT {good['tpot_limit_ms']:g} ms{verdict}"
    )
