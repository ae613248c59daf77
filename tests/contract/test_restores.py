"""A decode engine's request runs only when its prefix has arrived on the device, also when others
are bringing it there: SGLang's own code, which a hook of ours did until 0.5.23."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from dualpath_sglang.cpu.shims import install_shims

PRODUCER = 2
"""Number of the last copy that was begun."""


@pytest.fixture(scope="module")
def mixin() -> Any:
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.disaggregation import decode_hicache_mixin
    return decode_hicache_mixin


class Queue:
    """The transfer queue, as far as restores need it. done: copies that have ended."""

    def __init__(self, mixin: Any) -> None:
        self._restores = mixin.DecodeHiCacheTransferMixin._process_hicache_local_restores
        self.done: set[int] = set()
        counter = SimpleNamespace(producer_index=PRODUCER)
        self.tree_cache = SimpleNamespace(
            is_load_back_event_done=lambda number: number in self.done,
            has_free_load_back_slot=lambda: True,
            ready_to_load_host_cache=lambda: -1,
            cache_controller=SimpleNamespace(layer_done_counter=counter),
        )

    def tick(self, request: Any) -> str:
        self._restores(self, [request])
        return str(request.hicache_restore_status.value)


def test_a_prefix_that_others_copy_is_waited_for(mixin: Any) -> None:
    request = SimpleNamespace(
        hicache_restore_status=mixin.HiCacheRestoreResult.PENDING,
        hicache_load_consumer_index=-1,
        prefix_match=SimpleNamespace(needs_local_restore=False),
    )
    queue = Queue(mixin)
    assert [queue.tick(request) for _ in range(3)] == ["pending"] * 3
    queue.done = {PRODUCER - 1}
    assert queue.tick(request) == "pending"
    queue.done = {PRODUCER}
    assert queue.tick(request) == "ready"


def test_nobody_waits_when_nothing_is_copied(mixin: Any) -> None:
    request = SimpleNamespace(
        hicache_restore_status=mixin.HiCacheRestoreResult.PENDING,
        hicache_load_consumer_index=-1,
        prefix_match=None,
    )
    queue = Queue(mixin)
    queue.done = {PRODUCER}
    assert queue.tick(request) == "ready"
