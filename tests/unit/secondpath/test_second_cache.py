"""SGLang's own counters when a load is put into the tree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from second_doubles import Operation

from dualpath_sglang.cpu.shims import install_shims

install_shims()


class Collector:
    def __init__(self) -> None:
        self.prefetched: list[int] = []
        self.others = 0

    def log_prefetched_tokens(self, tokens: int) -> None:
        self.prefetched.append(tokens)

    def log_storage_metrics(self) -> None:
        self.others += 1


def test_what_the_peer_delivered_is_not_counted_as_prefetched_from_the_store() -> None:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

    class Cache(DualPathRadixCache):
        """Without a tree: only what `commit_load` itself does."""

        def __init__(self, operation: Any, collector: Any) -> None:
            self.tree_core = SimpleNamespace(page_size=16)
            self.ongoing_prefetch = {operation.handle: SimpleNamespace(operation=operation)}
            self.storage_metrics_collector = collector
            self.prefetch_loaded_tokens_by_reqid: dict[Any, int] = {}
            self.prefetch_loaded_storage_start_by_reqid: dict[Any, int] = {}
            self.cache_controller = SimpleNamespace(append_host_mem_release=lambda pages: None)

        def _handle_prefetch_result(self, operation: Any) -> None:
            if self.storage_metrics_collector is not None:
                self.storage_metrics_collector.log_prefetched_tokens(operation.completed_tokens)
                self.storage_metrics_collector.log_storage_metrics()
            self.prefetch_loaded_tokens_by_reqid[operation.handle] = operation.completed_tokens
            self.prefetch_loaded_storage_start_by_reqid[operation.handle] = 0

    operation: Any = Operation()
    operation.host_indices = range(10 * 16)
    collector = Collector()
    cache = Cache(operation, collector)
    assert cache.commit_load(operation, pages=8, peer_pages=5) == 8 * 16
    assert collector.prefetched == [3 * 16]
    assert collector.others == 1
    assert cache.storage_metrics_collector is collector
    assert cache.prefetch_loaded_tokens_by_reqid[operation.handle] == 3 * 16

    without = Cache(operation, None)
    assert without.commit_load(operation, pages=8, peer_pages=5) == 8 * 16
