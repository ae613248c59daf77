"""`summary.json`: medians over the runs of every arm, checked against the rules.

One file per finished run, so that a stopped rig goes on where it was; the summary is made of
them anew after every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rig.arms import ARMS, TOPOLOGIES, Job
from benchmarks.rig.rules import broken_rules
from benchmarks.rig.runfile import RUN_SCHEMA
from benchmarks.rig.targets import targets
from dualpath_sglang.contract.errors import ConfigError

SCHEMA = "dualpath-rig/1"
SUMMARY_FILE = "summary.json"
Tree = dict[str, Any]

MEDIANS = (
    "turns_per_s",
    "store_read_bytes",
    "needed_bytes",
    "peer_bytes",
    "nic_max_over_avg",
    "prompt_tokens",
    "computed_tokens",
    "completed_turns",
    "from_storage",
    "cpu_busy_share",
    "cpu_foreign_share",
    "window_s",
    "window_turns",
    "wall_s",
)
MEDIAN_TREES = (
    "jct_s",
    "ttft_ms",
    "tpot_ms",
    "nic_read_bytes",
    "nic_written_bytes",
    "compute_read_bytes",
    "hit_tokens",
    "hit_tokens_decode",
    "path_bytes",
    "planned_bytes",
    "cpu_s",
)


def run_path(out: Path, job: Job) -> Path:
    return out / "runs" / f"{job.topology}-{job.arm}-{job.index}.json"


def write_json(path: Path, tree: Tree) -> None:
    """All of it or nothing, also when the process is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_runs(out: Path) -> list[Tree]:
    """Every finished run in the folder. Raises ConfigError for a file that is none."""
    return [_read(path, RUN_SCHEMA) for path in sorted((out / "runs").glob("*.json"))]


def read_extra(out: Path, name: str) -> Tree | None:
    """A measurement that is no run of an arm, by its name; None when it was not made."""
    path = out / f"{name}.json"
    return _read(path, RUN_SCHEMA) if path.exists() else None


def check_digest(runs: Sequence[Tree], digest: str) -> None:
    """Raises ConfigError when the folder holds runs made with other settings."""
    if any(run["digest"] != digest for run in runs):
        raise ConfigError(
            "the folder holds runs with other settings: choose another --out, or start anew with "
            "--fresh",
            field="out",
        )


def build(
    runs: Sequence[Tree],
    extras: Mapping[str, Tree | None],
    failures: Mapping[str, str],
    environment: Tree,
) -> Tree:
    """The summary. `extras`: all other measurements by name, None for one that was not made.
    `failures`: why an arm has no run, by topology/arm."""
    topologies: Tree = {}
    for key in TOPOLOGIES:
        arms = {}
        for arm in ARMS:
            own = [run for run in runs if (run["topology"], run["arm"]) == (key, arm)]
            if own:
                arms[arm] = arm_summary(own)
            elif f"{key}/{arm}" in failures:
                arms[arm] = {"unavailable": failures[f"{key}/{arm}"], "runs": 0}
        if arms:
            topologies[key] = {"arms": arms, "speedup": speedups(arms)}
    summary: Tree = {
        "schema": SCHEMA,
        **environment,
        "topologies": topologies,
        **extras,
    }
    isolated = summary["isolated"]
    summary["isolated_ttft_ratio"] = isolated["ratio"] if isolated else None
    broken = broken_rules(summary)
    return {
        **summary,
        "targets": targets(summary),
        "valid": not broken,
        "broken_rules": broken,
    }


def arm_summary(runs: Sequence[Tree]) -> Tree:
    """Medians over the runs of one arm; errors are added up."""
    arm: Tree = {"runs": len(runs), "errors": sum(run["errors"] for run in runs)}
    for name in MEDIANS:
        arm[name] = _median([run.get(name) for run in runs])
    for name in MEDIAN_TREES:
        arm[name] = _median_tree([run.get(name) for run in runs])
    arm["turns_per_s_runs"] = [run["turns_per_s"] for run in runs]
    arm["store_read_source"] = runs[0]["store_read_source"]
    arm["fallbacks"] = _added([run.get("fallbacks") or {} for run in runs])
    arm["config"] = runs[0]["config"]
    arm["config_differs"] = any(run["config"] != runs[0]["config"] for run in runs)
    return arm


def speedups(arms: Mapping[str, Tree]) -> dict[str, float]:
    """turns/s of every arm over that of `upstream_prefill_only`."""
    base = arms.get("upstream_prefill_only", {}).get("turns_per_s")
    if not base:
        return {}
    rates = {name: arm.get("turns_per_s") for name, arm in arms.items()}
    return {name: round(rate / base, 4) for name, rate in rates.items() if rate}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _median_tree(trees: Sequence[Tree | None]) -> Tree | None:
    return _merged([tree for tree in trees if tree is not None], _median)


def _merged(trees: Sequence[Tree], join: Callable[[Sequence[Any]], Any]) -> Tree | None:
    if not trees:
        return None
    names = dict.fromkeys(name for tree in trees for name in tree)
    return {name: join([tree.get(name) for tree in trees]) for name in names}


def _added(trees: Sequence[Tree]) -> Tree:
    return _merged(trees, lambda values: sum(value or 0 for value in values)) or {}


def _read(path: Path, schema: str) -> Tree:
    try:
        tree: Tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="out") from error
    if not isinstance(tree, dict) or tree.get("schema") != schema:
        raise ConfigError(f"{path} is not of schema {schema}", field="out")
    return tree
