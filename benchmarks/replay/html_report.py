"""The HTML report: one file, no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.replay import table
from benchmarks.replay.charts import Plot, axis, cumulative, lanes, stacked_bars
from benchmarks.replay.records import TIERS
from benchmarks.replay.results import HTML_FILE

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #d8dee4; --main: #0969da;
  --device: #1a7f37; --host: #bf8700; --storage: #0969da; --peer: #8250df; --computed: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --soft: #30363d;
  --main: #58a6ff; --device: #3fb950; --host: #d29922; --storage: #58a6ff; --peer: #bc8cff;
  --computed: #f85149; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif;
  max-width: 780px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--soft); vertical-align: top; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
rect { stroke: var(--bg); stroke-width: .4; } .grid { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.5; }
.line.main { stroke: var(--main); } .main { fill: var(--main); }
.line.main { fill: none; } .failed { fill: var(--computed); }
.device { fill: var(--device); } .host { fill: var(--host); }
.storage { fill: var(--storage); } .peer { fill: var(--peer); } .computed { fill: var(--computed); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
.key.device { background: var(--device); } .key.host { background: var(--host); }
.key.storage { background: var(--storage); } .key.peer { background: var(--peer); }
.key.computed { background: var(--computed); }
pre { overflow-x: auto; background: color-mix(in srgb, var(--fg) 6%, var(--bg)); padding: .8rem; }
"""


def write_html(folder: Path, result: dict[str, Any]) -> None:
    (folder / HTML_FILE).write_text(render(result), encoding="utf-8")


def render(result: dict[str, Any]) -> str:
    body = "".join(
        f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in table.rows(result)
    )
    sections = [
        ("Time to first token over turns", "", _ttft(result)),
        (
            "Prompt tokens by source, prefill engines",
            _keys((*TIERS, "computed")),
            _tiers(result, "prefill"),
        ),
        ("Cached prompt tokens by tier, decode engines", _keys(TIERS), _tiers(result, "decode")),
        ("Job completion time", "", _jct(result)),
        ("Turns over time, one lane per session", "", _timeline(result)),
    ]
    charts = "".join(f"<h2>{escape(title)}{keys}</h2>{chart}" for title, keys, chart in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Replay report</title><style>{STYLE}</style></head><body>"
        f"<h1>Replay report</h1><p>{escape(result['created_at'])}</p><table>{body}</table>{charts}"
        f"{_failures(result)}{_origin(result)}</body></html>\n"
    )


def _keys(kinds: Iterable[str]) -> str:
    return "".join(f'<small><span class="key {kind}"></span>{kind}</small>' for kind in kinds)


def _done(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn for turn in result["turn_records"] if turn["error"] is None]


def _ttft(result: dict[str, Any]) -> str:
    """A dot per turn and the median per turn number."""
    by_turn: dict[int, list[float]] = defaultdict(list)
    for turn in _done(result):
        by_turn[turn["turn"]].append(turn["ttft_ms"])
    if not by_turn:
        return "<p>No turn was completed.</p>"
    values = [value for group in by_turn.values() for value in group]
    plot = Plot(axis([max(by_turn) + 1], "turn"), axis(values, "TTFT (ms)"))
    for turn in _done(result):
        title = f"{turn['session']} turn {turn['turn']}: {turn['ttft_ms']:.1f} ms"
        plot.dot(turn["turn"], turn["ttft_ms"], "main", title)
    plot.line([(turn, median(by_turn[turn])) for turn in sorted(by_turn)], "main")
    return plot.svg("time to first token over turns")


def _tiers(result: dict[str, Any], side: str) -> str:
    totals: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for turn in _done(result):
        for kind, count in (turn[side] or {}).items():
            totals[turn["turn"]][kind] += count
    if not totals:
        return f"<p>The {side} engines did not report their tiers.</p>"
    kinds = (*TIERS, "computed") if side == "prefill" else TIERS
    ordered = [totals[turn] for turn in range(max(totals) + 1)]
    return stacked_bars(ordered, kinds, "turn", "tokens", f"tokens by tier, {side}")


def _jct(result: dict[str, Any]) -> str:
    values = [s["jct_s"] for s in result["session_records"] if s["jct_s"] is not None]
    if not values:
        return "<p>No session was completed.</p>"
    return cumulative(values, "job completion time (s)", "distribution of job completion times")


def _timeline(result: dict[str, Any]) -> str:
    lane = {s["session"]: index for index, s in enumerate(result["session_records"])}
    spans = []
    for turn in result["turn_records"]:
        took = (turn["e2e_ms"] or 0.0) / 1e3
        kind = "main" if turn["error"] is None else "failed"
        title = f"{turn['session']} turn {turn['turn']}: {took:.2f} s"
        spans.append(
            (lane[turn["session"]], turn["started_s"], turn["started_s"] + took, kind, title)
        )
    return lanes(spans, len(lane), "seconds since start", "timeline of turns per session")


def _failures(result: dict[str, Any]) -> str:
    failed = [session for session in result["session_records"] if session["error"]]
    if not failed:
        return ""
    items = "".join(
        f"<li>{escape(s['session'])} after {s['completed_turns']} turns: "
        f"{escape(s['error']['kind'])}: {escape(s['error']['message'])}</li>"
        for s in failed[:50]
    )
    return f"<h2>Failures</h2><ul>{items}</ul>"


def _origin(result: dict[str, Any]) -> str:
    names = ("command", "versions", "machine", "driving", "workload", "comparison")
    shown = json.dumps({name: result[name] for name in names}, indent=1)
    return f"<h2>How it was made</h2><pre>{escape(shown)}</pre>"
