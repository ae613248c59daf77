"""What a session is doing, and when it may come back."""

from __future__ import annotations

from agent_runtime.trajectory.rhythm import REMEMBERED, Rhythm, State


def test_states() -> None:
    rhythm = Rhythm()
    assert rhythm.state(0.0, 60.0) == State.NEW
    rhythm.starts(0.0)
    assert rhythm.state(1000.0, 60.0) == State.RUNNING, "however long it takes"
    rhythm.ends(5.0, tool="bash")
    assert rhythm.state(6.0, 60.0) == State.WAITING_FOR_TOOL
    rhythm.starts(7.0)
    rhythm.ends(8.0)
    assert rhythm.state(9.0, 60.0) == State.IDLE
    assert rhythm.state(68.0, 60.0) == State.ENDED
    rhythm.starts(100.0)
    assert rhythm.state(101.0, 60.0) == State.RUNNING, "a late turn revives it"
    rhythm.ends(102.0, tool="bash", over=True)
    assert rhythm.state(102.0, 60.0) == State.ENDED
    rhythm.starts(103.0)
    assert rhythm.state(103.0, 60.0) == State.RUNNING


def turn(rhythm: Rhythm, start: float, end: float, tool: str = "") -> None:
    rhythm.starts(start)
    rhythm.ends(end, tool)


def test_the_time_between_turns_by_tool() -> None:
    rhythm = Rhythm()
    assert rhythm.expected_gap_s() is None
    turn(rhythm, 0.0, 1.0, "bash")
    assert rhythm.expected_gap_s() is None
    turn(rhythm, 3.0, 4.0, "bash")
    assert rhythm.expected_gap_s() == 2.0
    turn(rhythm, 8.0, 9.0, "test")
    assert rhythm.expected_gap_s() == 3.0, "nothing is known of this tool: 2 and 4 s after others"
    turn(rhythm, 109.0, 110.0, "test")
    assert rhythm.expected_gap_s() == 100.0
    turn(rhythm, 210.0, 211.0, "bash")
    assert rhythm.expected_gap_s() == 3.0


def test_what_is_remembered_is_bounded() -> None:
    rhythm = Rhythm()
    for i in range(5 * REMEMBERED):
        turn(rhythm, 10.0 * i, 10.0 * i + 1)
    assert len(rhythm.gaps) == REMEMBERED
    assert rhythm.expected_gap_s() == 9.0
