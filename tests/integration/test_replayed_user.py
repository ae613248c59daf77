"""A recorded user on real engines: text, sub-agents that overlap, turns that generate or append
nothing. Every token is compared with one plain engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.stack.stack import RunningStack
from benchmarks.replay.plan import DriverOptions, Goodput
from benchmarks.replay.probes import run_search
from benchmarks.replay.results import read_result
from benchmarks.replay.runs import run_compare, run_replay
from benchmarks.replay.scale import Filters
from benchmarks.replay.texts import Texts
from benchmarks.replay.tokens import space_of_model
from benchmarks.replay.workload import WorkloadOptions, load

PAGE = 16
SYSTEM = "Answer with one command. Read files before you change them. " * 6
TOOLS = "grep PATTERN FILE: print lines that match. sed RANGE FILE: print lines. " * 4


def turn(begin: float, seconds: float, keep: int, append: int, out: int, *texts: str) -> Any:
    messages = [{"role": "user", "content": text} for text in texts]
    return {
        "keep": keep, "append": append, "out": out, "out_kept": out, "gap": "tool", "gap_s": None,
        "t_s": begin, "llm_s": seconds, "append_msgs": messages or None,
    }  # fmt: skip


def session(sid: str, start_s: float, *turns: Any) -> dict[str, Any]:
    """`keep` of each turn is filled in: the whole context."""
    context = 0
    for each in turns:
        each["keep"] = context
        context += each["append"] + each["out_kept"]
    common = {"v": 1, "dataset": "user", "parent": "u", "start_s": start_s}
    return {**common, "sid": sid, "turns": list(turns)}


def recorded_user() -> list[dict[str, Any]]:
    """The main session's third turn was sent after both sub-agents had ended."""
    agents = [
        session(
            f"agent{i}",
            4.0 + i,
            turn(0, 3, 0, 90, 24, TOOLS, f"Find the parser of dates, part {i}."),
            turn(4, 3, 0, 12, 16, f"dates{i}.py: 3 matches"),
        )
        for i in (1, 2)
    ]
    main = session(
        "main",
        0.0,
        turn(0, 1, 0, 160, 16, SYSTEM, TOOLS, "The parser of dates fails."),
        turn(2, 1, 0, 20, 8, "Look for it."),
        turn(30, 1, 0, 20, 0, "Both found it."),
        turn(32, 1, 0, 0, 12),
        turn(34, 1, 0, 20, 8, "Now repair it."),
    )
    following = session(
        "next", 60.0, turn(0, 1, 0, 170, 8, SYSTEM, TOOLS, "Write a test for the parser.")
    )
    return [main, *agents, following]


@pytest.fixture(scope="module")
def replayed(
    pair: RunningStack, reference: str, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("user")
    trace = out / "user.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in recorded_user()))
    work = load(WorkloadOptions(trace=trace), Texts(model_dir))
    options = DriverOptions(url=pair.router_url)
    asyncio.run(run_replay(work, space_of_model(model_dir), options, out))
    return asyncio.run(run_compare(out, reference))


def records(result: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(record["session"], record["turn"]): record for record in result["turn_records"]}


def test_every_token_is_that_of_a_plain_engine(replayed: dict[str, Any]) -> None:
    assert replayed["errors"] == 0
    assert replayed["compared_turns"] == replayed["turns"] == 10
    assert replayed["outputs_equal"]


def test_text_is_replayed_and_what_sessions_share_is_cached(replayed: dict[str, Any]) -> None:
    assert replayed["workload"]["text"]["turns"] == 9
    made = records(replayed)
    first, last = made["main", 0], made["next", 0]
    shared = first["prompt_tokens"] - 40
    assert sum(first["prefill"].values()) == first["prompt_tokens"]
    assert last["prompt_tokens"] - last["prefill"]["computed"] >= shared // PAGE * PAGE


def test_sub_agents_run_side_by_side_and_their_session_waits_for_both(
    replayed: dict[str, Any],
) -> None:
    made = records(replayed)
    spans = {
        key: (record["started_s"], record["started_s"] + record["e2e_ms"] / 1e3)
        for key, record in made.items()
    }
    assert spans["main", 1][1] <= min(spans[agent, 0][0] for agent in ("agent1", "agent2"))
    begin = max(spans["agent1", 0][0], spans["agent2", 0][0])
    assert begin < min(spans["agent1", 1][1], spans["agent2", 1][1])
    assert spans["main", 2][0] >= max(spans[agent, 1][1] for agent in ("agent1", "agent2"))
    assert spans["next", 0][0] >= spans["main", 4][1]


def test_turns_that_generate_or_append_nothing(replayed: dict[str, Any]) -> None:
    made = records(replayed)
    silent, again, after = (made["main", number] for number in (2, 3, 4))
    assert (silent["out"], silent["output_tokens"]) == (0, 0)
    assert silent["ttft_ms"] > 0
    assert (again["append"], again["prompt_tokens"]) == (0, silent["prompt_tokens"])
    assert again["prefill"]["computed"] <= PAGE
    assert after["keep"] == again["prompt_tokens"] + 12


def test_a_search_on_real_engines(pair: RunningStack, model_dir: Path, tmp_path: Path) -> None:
    """It goes up until all sessions are there at once; no probe profits from the one before."""
    work = load(WorkloadOptions(generate="32k", scale=0.02, filters=Filters(3, 2, 2, 1024)))
    options, slo = DriverOptions(url=pair.router_url), Goodput(60_000.0, 60_000.0, 0.9)
    space = space_of_model(model_dir)
    found = asyncio.run(run_search(work, space, options, tmp_path, slo, 16.0))
    assert (found["reason"], found["rate_per_s"] > 16.0) == ("all_at_once", True)
    assert all(probe["met"] and probe["failed_turns"] == 0 for probe in found["probes"])
    first = [record for record in read_result(tmp_path)["turn_records"] if record["turn"] == 0]
    assert [record["prefill"]["computed"] for record in first] == [
        record["prompt_tokens"] for record in first
    ]
