"""`--search`: replays at one rate after another on a real stack, until the limit is known.

Every probe's contexts start with a token of their own, so that none finds in a cache or in the
store what another left there. A probe ends as soon as it cannot keep the promise any more. The
files of a replay are those of the best probe; search.json has them all.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.replay.driver import replay
from benchmarks.replay.plan import DriverOptions, Goodput, rate_arrivals
from benchmarks.replay.progress import Progress
from benchmarks.replay.records import Observed, TurnRecord
from benchmarks.replay.results import build
from benchmarks.replay.runs import driving, make_folder, save
from benchmarks.replay.schedule import plan
from benchmarks.replay.search import RESOLUTION, Found, Outcome, search
from benchmarks.replay.stats import summary
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session
from benchmarks.replay.workload import Workload

FILE = "search.json"
SCHEMA_VERSION = "dualpath-replay-search/1"
AT_ONCE = 0.1
"""All arrivals within this part of a typical session are as good as at once."""


class Missed(Exception):
    """More turns are bad than may be."""


class Watch:
    """Sees every turn of a probe. Raises Missed when it cannot keep the promise any more."""

    def __init__(self, slo: Goodput, sessions: Sequence[Session]) -> None:
        self._slo = slo
        self._left = {session.sid: len(session.turns) for session in sessions}
        self._turns = sum(self._left.values())
        self._bad = 0
        self.records: list[TurnRecord] = []

    def turn(self, record: TurnRecord) -> None:
        self.records.append(record)
        self._left[record.session] -= 1
        if record.error is not None:
            # The turns after it are never sent.
            self._bad += 1 + self._left[record.session]
        else:
            self._bad += not self._slo.good(record)
        if self._slo.met(self._turns - self._bad, self._turns) is False:
            raise Missed

    def under_way(self) -> float:
        """Sessions running, on average from the start of the probe to the end of its last turn."""
        spans: dict[str, tuple[float, float]] = {}
        for record in self.records:
            end = record.started_s + (record.e2e_ms or 0.0) / 1e3
            first, last = spans.get(record.session, (record.started_s, end))
            spans[record.session] = (min(first, record.started_s), max(last, end))
        until = max((last for _, last in spans.values()), default=0.0)
        return sum(last - first for first, last in spans.values()) / until if until else 0.0


@dataclass
class _Best:
    rate_per_s: float = 0.0
    result: dict[str, Any] | None = None
    seen: Observed | None = None


class Prober:
    """Replays `workload` at a rate and says whether the promise was kept."""

    def __init__(
        self,
        workload: Workload,
        space: TokenSpace,
        options: DriverOptions,
        slo: Goodput,
        command: Sequence[str],
    ) -> None:
        self._workload = workload
        self._space = space
        self._options = options
        self._slo = slo
        self._command = command
        self._schedule = plan(workload.sessions)
        self._mark = secrets.randbelow(space.vocab_size)
        self.best = _Best()

    async def probe(self, rate_per_s: float) -> Outcome:
        arrivals = rate_arrivals(self._schedule, rate_per_s, self._workload.options.seed)
        options = replace(self._options, arrivals_s=tuple(arrivals), rate_per_s=rate_per_s)
        sessions = self._workload.sessions
        watch = Watch(self._slo, sessions)
        self._mark += 1
        source = TokenSource(self._space, self._mark)
        seen = None
        label, turns = f"{rate_per_s:.4g}/s", self._workload.turns
        with Progress(label, turns) as progress, contextlib.suppress(Missed):
            seen = await replay(sessions, source, options, progress, on_turn=watch.turn)
        last = max(at for at in arrivals if at is not None)
        outcome = self._outcome(rate_per_s, watch, seen, last)
        print(describe(outcome), file=sys.stderr, flush=True)
        if seen is not None and outcome.met and rate_per_s > self.best.rate_per_s:
            self.best = _Best(rate_per_s, self._result(seen, options), seen)
        return outcome

    def _result(self, seen: Observed, options: DriverOptions) -> dict[str, Any]:
        made = driving(options, self._space)
        return build(seen, self._workload.describe(), made, self._slo, self._command)

    def _outcome(
        self, rate_per_s: float, watch: Watch, seen: Observed | None, last_arrival_s: float
    ) -> Outcome:
        good = sum(map(self._slo.good, watch.records))
        met = seen is not None and self._slo.met(good, self._workload.turns) is True
        jct_s = summary(s.jct_s for s in seen.sessions) if seen else None
        detail = {
            "turns_seen": len(watch.records),
            "good_turns": good,
            "failed_turns": sum(record.error is not None for record in watch.records),
            "stopped_early": seen is None,
            "last_arrival_s": round(last_arrival_s, 3),
            "ttft_ms": summary(record.ttft_ms for record in watch.records),
            "tpot_ms": summary(record.tpot_ms for record in watch.records),
            "jct_s": jct_s,
        }
        typical = (jct_s or {}).get("p50") or 0.0
        all_at_once = last_arrival_s < AT_ONCE * typical
        return Outcome(rate_per_s, met, all_at_once, watch.under_way(), detail)


async def run_search(
    workload: Workload,
    space: TokenSpace,
    options: DriverOptions,
    out: Path,
    slo: Goodput,
    first_rate_per_s: float,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of search.json. Raises ConfigError when `out` cannot be a folder."""
    make_folder(out)
    prober = Prober(workload, space, options, slo, command)
    found = await search(first_rate_per_s, prober.probe)
    if prober.best.result is not None and prober.best.seen is not None:
        save(out, prober.best.result, prober.best.seen)
    result = as_json(found, workload, slo)
    (out / FILE).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return result


def as_json(found: Found, workload: Workload, slo: Goodput) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "slo": {
            "ttft_ms": slo.ttft_ms,
            "tpot_ms": slo.tpot_ms,
            "required_fraction": slo.required,
        },
        "rate_per_s": found.rate_per_s,
        "reason": found.reason,
        "resolution": RESOLUTION,
        "workload": workload.describe(),
        "probes": [
            {
                "rate_per_s": probe.rate_per_s,
                "met": probe.met,
                "sessions_under_way": round(probe.under_way, 3),
                **probe.detail,
            }
            for probe in found.probes
        ],
    }


def describe(probe: Outcome) -> str:
    """One line for people."""
    detail = probe.detail
    times = ", ".join(
        f"{name} p90 {detail[key]['p90']:,.0f} ms"
        for name, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"))
        if detail[key]["count"]
    )
    verdict = "met" if probe.met else "missed"
    early = ", stopped early" if detail["stopped_early"] else ""
    seen = f"{detail['good_turns']} of {detail['turns_seen']} turns good{early}"
    under_way = f"{probe.under_way:.1f} sessions at a time"
    return f"rate {probe.rate_per_s:.4g}/s: {verdict}; {seen}, {under_way}, {times or 'no times'}"


def conclusion(result: dict[str, Any]) -> str:
    rate = result["rate_per_s"]
    told = {
        "found": f"highest rate that meets it: {rate or 0:.4g} users/s (within 10 %)",
        "all_at_once": f"met at {rate or 0:.4g} users/s, where all sessions run at once: give more "
        "sessions to find the limit",
        "never": "missed even where sessions hardly meet: no rate is low enough",
        "probes": f"not settled in {len(result['probes'])} probes; met at {rate or 0:.4g} users/s",
    }
    return told[result["reason"]]
