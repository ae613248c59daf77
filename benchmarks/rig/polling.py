"""Threads that wait by polling step back.

Mooncake 0.3.13 waits for a transfer in a loop that never sleeps: a thread that reads 4 MB over a
slow network burns a core for as long as that takes, more than everything else of an engine
together. With fewer cores than such threads, the schedulers wait for time slices that nobody
needs. In the kernel's idle class such a thread polls with what the others leave, and whoever
wakes up takes its core at once.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from dualpath_sglang.hooks import Hook

_state = threading.local()


def step_back() -> None:
    """Put this thread into the idle class, once; never the one that runs the scheduler."""
    if getattr(_state, "done", False) or threading.current_thread() is threading.main_thread():
        return
    _state.done = True
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def around_transfer(original: Any, *args: Any, **kwargs: Any) -> Any:
    step_back()
    return original(*args, **kwargs)


_STORE = "sglang.srt.mem_cache.storage.mooncake_store.mooncake_store.MooncakeStore"
POLLING_HOOKS: tuple[Hook, ...] = (
    Hook(
        f"{_STORE}._get_batch_zero_copy_impl",
        "around",
        around_transfer,
        "a thread that reads the store polls without a pause",
    ),
    Hook(
        f"{_STORE}._put_batch_zero_copy_impl",
        "around",
        around_transfer,
        "a thread that writes to the store polls without a pause",
    ),
    Hook(
        "sglang.srt.distributed.device_communicators.mooncake_transfer_engine."
        "MooncakeTransferEngine.batch_transfer_sync",
        "around",
        around_transfer,
        "a thread that sends KV to the decode engine polls without a pause",
    ),
)
"""Of the rig only, in every arm of a comparison (`engine.py`)."""
