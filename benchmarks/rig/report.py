"""The summary for people: a text table, a PNG, and one HTML page with both."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.rig.arms import ARMS, TOPOLOGIES

Tree = dict[str, Any]
COLUMNS = (
    "arm",
    "runs",
    "turns/s",
    "x upstream",
    "TTFT p50 s",
    "TTFT p99 s",
    "TPOT p50 ms",
    "JCT p50 s",
    "NIC read MB",
    "max/avg",
    "store x",
    "peer MB",
    "hits off NIC",
    "CPU busy",
    "CPU foreign",
    "errors",
)
MB = 1e6


def rows(block: Tree) -> list[list[str]]:
    """One line of text cells per arm of a topology, in the order of the arms."""
    return [_row(name, block["arms"][name], block) for name in ARMS if name in block["arms"]]


def as_text(summary: Tree) -> str:
    """The whole summary as plain text."""
    parts = []
    for topology, block in summary["topologies"].items():
        parts += [f"{topology} (limit {TOPOLOGIES[topology].limit:.1f}x)", _table(rows(block)), ""]
    parts += [_target(target) for target in summary["targets"]]
    parts += ["", _settings(summary["settings"]), ""]
    parts.append("valid" if summary["valid"] else "NOT VALID, broken rules:")
    parts += [f"  {text}" for text in summary["broken_rules"]]
    return "\n".join(parts)


def write(out: Path, summary: Tree) -> None:
    """report.txt, report.png and report.html beside the summary."""
    text, image = as_text(summary), plot(summary)
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    (out / "report.png").write_bytes(image)
    encoded = base64.b64encode(image).decode()
    (out / "report.html").write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Rig report</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem}pre{overflow-x:auto}"
        "img{max-width:100%}</style></head><body><h1>Rig report</h1>"
        f'<img alt="turns per second by arm" src="data:image/png;base64,{encoded}">'
        f"<pre>{escape(text)}</pre></body></html>\n",
        encoding="utf-8",
    )


def plot(summary: Tree) -> bytes:
    """A PNG: turns/s and bytes per NIC by arm, one row of charts per topology."""
    # Imported late: the command line answers without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = [(key, _measured(block)) for key, block in summary["topologies"].items()]
    figure = Figure(figsize=(13, 3.2 * max(1, len(blocks))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(blocks)), 2, squeeze=False)
    for (rate, nics), (key, arms) in zip(axes, blocks, strict=False):
        _rates(rate, key, arms)
        _nics(nics, key, arms)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _rates(axis: Any, topology: str, arms: Tree) -> None:
    names = list(arms)
    axis.bar(names, [arms[name]["turns_per_s"] for name in names], color="#0969da")
    for place, name in enumerate(names):
        runs = arms[name]["turns_per_s_runs"]
        axis.plot([place] * len(runs), runs, "k.", markersize=4)
    base = arms.get("upstream_prefill_only")
    if base:
        limit = base["turns_per_s"] * TOPOLOGIES[topology].limit
        axis.axhline(limit, color="grey", linestyle=":", label="limit of the storage NICs")
        axis.legend(loc="upper left")
    axis.set_title(f"{topology}: turns/s (dots: runs)")
    axis.tick_params(axis="x", rotation=30)


def _nics(axis: Any, topology: str, arms: Tree) -> None:
    names = list(arms)
    base = [0.0] * len(names)
    for node in TOPOLOGIES[topology].engine_names:
        amounts = [(arms[n]["nic_read_bytes"] or {}).get(node) or 0.0 for n in names]
        turns = [arms[n]["completed_turns"] or 1 for n in names]
        each = [amount / MB / count for amount, count in zip(amounts, turns, strict=True)]
        axis.bar(names, each, bottom=base, label=node)
        base = [low + high for low, high in zip(base, each, strict=True)]
    axis.set_title(f"{topology}: MB per turn read over the storage NIC of each node")
    axis.tick_params(axis="x", rotation=30)
    axis.legend()


def _measured(block: Tree) -> Tree:
    return {n: block["arms"][n] for n in ARMS if block["arms"].get(n, {}).get("runs")}


def _row(name: str, arm: Tree, block: Tree) -> list[str]:
    if not arm["runs"]:
        return [name, "0", arm.get("unavailable", ""), *[""] * (len(COLUMNS) - 3)]
    store, needed = arm["store_read_bytes"], arm["needed_bytes"]
    nic = "+".join(f"{value / MB:.0f}" for value in arm["nic_read_bytes"].values())
    cells = [
        _number(arm["turns_per_s"], 3),
        _number(block["speedup"].get(name), 2),
        _number(_part(arm, "ttft_ms", "p50", 1e3), 2),
        _number(_part(arm, "ttft_ms", "p99", 1e3), 2),
        _number(_part(arm, "tpot_ms", "p50", 1), 1),
        _number(_part(arm, "jct_s", "p50", 1), 1),
        nic,
        _number(arm["nic_max_over_avg"], 2),
        _number(store / needed if store is not None and needed else None, 2),
        _number(arm["peer_bytes"] / MB, 0),
        _number(arm["from_storage"], 3),
        _number(arm["cpu_busy_share"], 2),
        _number(arm["cpu_foreign_share"], 2),
        str(arm["errors"]),
    ]
    return [name, str(arm["runs"]), *cells]


def _part(arm: Tree, name: str, percentile: str, divisor: float) -> float | None:
    value = (arm[name] or {}).get(percentile)
    return None if value is None else value / divisor


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(lines: list[list[str]]) -> str:
    # An unavailable arm's reason may run over the columns beside it.
    sized = [line for line in lines if not (line[1] == "0" and line[2])] or [list(COLUMNS)]
    widths = [max(len(line[i]) for line in [list(COLUMNS), *sized]) for i in range(len(COLUMNS))]
    widths[0] = max(len(line[0]) for line in [list(COLUMNS), *lines])
    shown = []
    for line in [list(COLUMNS), *lines]:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def _target(target: Tree) -> str:
    mark = "reached" if target["reached"] else "NOT reached"
    measured = "not measured" if target["measured"] is None else f"{target['measured']:.3f}"
    return f"{mark:>11}: {target['what']}: {measured} (wanted {target['wanted']})"


def _settings(settings: Tree) -> str:
    """Those of our arms that are not the defaults."""
    shown = [f"{name} {value['rig']:g} ({value['default']:g})" for name, value in settings.items()]
    return f"settings of DualPath's arms (defaults): {', '.join(shown)}"
