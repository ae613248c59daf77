"""Threads that poll give way to all others; the scheduler's own thread never does."""

from __future__ import annotations

import os
import threading

from benchmarks.rig.polling import POLLING_HOOKS, around_transfer
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import check_targets

install_shims()


def policies(calls: int) -> list[int]:
    """Scheduling classes of a fresh thread within and after `calls` transfers."""
    seen: list[int] = []

    def transfer() -> str:
        seen.append(os.sched_getscheduler(0))
        return "done"

    def work() -> None:
        seen.append(os.sched_getscheduler(0))
        for _ in range(calls):
            assert around_transfer(transfer) == "done"

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


def test_a_thread_steps_back_with_its_first_transfer() -> None:
    assert policies(2) == [os.SCHED_OTHER, os.SCHED_IDLE, os.SCHED_IDLE]


def test_threads_that_transfer_nothing_stay_as_they_are() -> None:
    policies(1)
    assert policies(0) == [os.SCHED_OTHER]


def test_the_main_thread_never_steps_back() -> None:
    assert threading.current_thread() is threading.main_thread()
    assert around_transfer(lambda: os.sched_getscheduler(0)) == os.SCHED_OTHER


def test_arguments_and_errors_pass_through() -> None:
    assert around_transfer(lambda a, *, b: (a, b), 1, b=2) == (1, 2)


def test_the_targets_exist() -> None:
    assert check_targets(POLLING_HOOKS) == []
