"""Sessions in mid-trajectory, and tokens that are old where they should be and new elsewhere."""

from __future__ import annotations

import pytest

from benchmarks.replay.tokens import TokenSpace
from benchmarks.rig.config import RigConfig
from benchmarks.rig.workload import RigTokens, build, only_first_turn
from dualpath_sglang.contract.errors import ConfigError

CONFIG = RigConfig(sessions=4, turns=3)
SPACE = TokenSpace(1000, frozenset({3}))


def test_sessions_start_at_the_wanted_context_and_are_nearly_all_hits() -> None:
    workload = build(RigConfig())
    assert len(workload.sessions) == 20
    turns = [turn for session in workload for turn in session.turns]
    assert len(turns) == 20 * 3
    assert sum(turn.keep for turn in turns) / sum(turn.prompt for turn in turns) >= 0.97
    assert all(4000 <= session.history < 5000 for session in workload)
    assert workload.working_set > 1.5 * RigConfig().prefill_pools.host_tokens
    assert build(RigConfig()).digest == workload.digest
    assert build(RigConfig(seed=1)).digest != workload.digest


def test_pools_hold_the_longest_session() -> None:
    """And those in flight fit into the half of host memory that SGLang prefetches into."""
    config = RigConfig()
    longest = sorted((session.longest for session in build(config)), reverse=True)
    assert longest[0] + 512 < config.prefill_pools.tokens
    for pools in (config.prefill_pools, config.decode_pools):
        # One more is let in as long as those before it leave room.
        assert sum(longest[: config.max_inflight - 1]) < pools.host_tokens / 2


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_the_engines_of_a_role_share_what_is_in_flight(engines: int) -> None:
    """One more than its part on one of them still fits into the half of its host memory."""
    config = RigConfig()
    longest = sorted((session.longest for session in build(config)), reverse=True)
    part = -(-config.inflight(engines) // engines) + (engines > 1)
    assert config.inflight(engines) >= engines
    assert sum(longest[: part - 1]) < config.prefill_pools.shared(engines).host_tokens / 2


def test_measured_turns_are_those_of_the_trajectory() -> None:
    for session in build(CONFIG):
        measured = session.measured()
        assert measured.turns[0].keep == 0
        assert measured.turns[0].prompt == session.turns[0].prompt
        for a, b in zip(measured.turns[1:], session.turns[1:], strict=True):
            assert (a.keep, a.append, a.out) == (b.keep, b.append, b.out)
        context = 0
        for turn in measured.turns:
            assert turn.keep == context
            context = turn.context
        assert session.prefill().turns[0].append == session.history


def test_the_history_is_the_same_in_all_runs_and_the_rest_in_none() -> None:
    workload = build(CONFIG)
    session = workload.sessions[0]
    fill, one, two = (RigTokens(SPACE, workload, run) for run in ("fill", "1", "2"))
    (history,) = fill.appended(session.prefill())
    assert len(history) == session.history
    a, b = one.appended(session.measured()), two.appended(session.measured())
    assert a[0][: session.history] == b[0][: session.history] == history
    assert [len(tokens) for tokens in a] == [turn.append for turn in session.measured().turns]
    new = session.turns[0].append
    assert len(a[0]) == session.history + new
    assert a[0][session.history :] != b[0][session.history :]
    assert a[1:] != b[1:]
    assert a == RigTokens(SPACE, workload, "1").appended(session.measured())


def test_a_lone_request_is_one_turn_with_the_whole_history() -> None:
    workload = build(CONFIG)
    lone = only_first_turn(workload.sessions, len(workload.sessions) + 1)
    assert lone.sid == workload.sessions[1].sid
    assert len(lone.measured().turns) == 1


def test_a_context_that_no_session_reaches() -> None:
    with pytest.raises(ConfigError, match="only 0 of"):
        build(RigConfig(context=100_000))
