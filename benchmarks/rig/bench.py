"""A whole rig run: the lab, the model, all jobs, and the summary after every one of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.replay.environment import machine, versions
from benchmarks.replay.tokens import space_of_model
from benchmarks.rig import report, summary
from benchmarks.rig.arms import ALL_NODES, ARMS, Job, jobs
from benchmarks.rig.config import RigConfig
from benchmarks.rig.isolated import isolated
from benchmarks.rig.lab import Lab
from benchmarks.rig.machines import Machines
from benchmarks.rig.runner import Runner
from benchmarks.rig.stacks import StackPlan, settings
from benchmarks.rig.unshaped import tpot, unshaped
from benchmarks.rig.workload import build
from benchmarks.testmodel import make_model
from dualpath_sglang.contract.errors import DualPathError

EXTRAS: dict[str, Callable[[Runner, int], dict[str, Any]]] = {
    "isolated": isolated,
    "unshaped": unshaped,
    "tpot": tpot,
}
"""Measurements that are no runs of an arm, each with a file of its own."""
EXTRA_TOPOLOGY = "1P1D"
"""The one that lone requests are measured on, with the engines that are up then."""


@dataclass(frozen=True)
class Order:
    """What to measure: `runs` by arm, and `pairs` of each other measurement (0: none)."""

    topologies: tuple[str, ...]
    arms: tuple[str, ...]
    runs: dict[str, int]
    pairs: dict[str, int]

    def jobs(self) -> list[Job]:
        return jobs(self.topologies, self.arms, self.runs)


class Bench:
    def __init__(
        self,
        config: RigConfig,
        order: Order,
        out: Path,
        model: Path | None,
        show: Callable[[str], None],
    ) -> None:
        self._config = config
        self._order = order
        self._out = out
        self._model = model or out / "model"
        self._show = show
        self._failures: dict[str, str] = {}

    def carry_out(self, *, fresh: bool) -> dict[str, Any]:
        """All jobs that have no result yet; the summary. Raises DualPathError when nothing can
        be measured at all; a job that fails is reported in the summary."""
        if fresh:
            self._forget()
        runs = summary.read_runs(self._out)
        summary.check_digest(runs, self._config.digest)
        todo = [j for j in self._order.jobs() if not summary.run_path(self._out, j).exists()]
        extras = [
            name
            for name, pairs in self._order.pairs.items()
            if pairs and summary.read_extra(self._out, name) is None
        ]
        also = f", then {', '.join(extras)}" if extras else ""
        self._show(f"{len(todo)} of {len(self._order.jobs())} runs to do{also}")
        if todo or extras:
            make_model(self._model, self._show, **asdict(self._config.model))
            self._measure(todo, extras)
        return summarize(self._out, self._failures)

    def _forget(self) -> None:
        shutil.rmtree(self._out / "runs", ignore_errors=True)
        for name in EXTRAS:
            (self._out / f"{name}.json").unlink(missing_ok=True)

    def _measure(self, todo: list[Job], extras: list[str]) -> None:
        workload = build(self._config)
        space = space_of_model(self._model)
        with Lab(ALL_NODES) as lab, lab.inside("router"):
            plan = StackPlan(self._config, self._model.resolve(), self._out.resolve(), lab.words)
            with Machines(plan, self._show) as machines:
                runner = Runner(self._config, lab, machines, workload, space, self._show)
                engines_up = _last_of_ours(todo)
                for place, job in enumerate(todo):
                    self._show(f"run {place + 1}/{len(todo)}: {job.name}")
                    self._one(runner, job)
                    if place == engines_up and "isolated" in extras:
                        extras = [name for name in extras if name != "isolated"]
                        self._extra(runner, "isolated")
                for name in extras:
                    self._extra(runner, name)

    def _one(self, runner: Runner, job: Job) -> None:
        where = f"{job.topology}/{job.arm}"
        try:
            result = runner.run(job)
        except DualPathError as error:
            self._failures[where] = error.message
            self._show(f"{job.name} has no result: {error.message}")
        else:
            summary.write_json(summary.run_path(self._out, job), result)
            self._show(
                f"{job.name}: {result['turns_per_s']:.3f} turns/s, {result['errors']} errors"
            )
        summarize(self._out, self._failures)

    def _extra(self, runner: Runner, name: str) -> None:
        self._show(f"measuring {name}")
        try:
            result = EXTRAS[name](runner, self._order.pairs[name])
        except DualPathError as error:
            self._show(f"{name} has no result: {error.message}")
            return
        summary.write_json(self._out / f"{name}.json", result)
        self._show(f"{name}: ratio {result['ratio']:.3f}")
        summarize(self._out, self._failures)


def _last_of_ours(todo: list[Job]) -> int | None:
    """After this job the engines that lone requests need are up; None: never."""
    ours = [i for i, j in enumerate(todo) if j.topology == EXTRA_TOPOLOGY and ARMS[j.arm].ours]
    return ours[-1] if ours else None


def summarize(out: Path, failures: dict[str, str]) -> dict[str, Any]:
    """summary.json and the report, from all runs in the folder."""
    environment = {"versions": versions(), "machine": machine(), "settings": settings()}
    runs = summary.read_runs(out)
    extras = {name: summary.read_extra(out, name) for name in EXTRAS}
    made = summary.build(runs, extras, failures, environment)
    summary.write_json(out / summary.SUMMARY_FILE, made)
    report.write(out, made)
    return made
