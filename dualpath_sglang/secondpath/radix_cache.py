"""SGLang's radix cache with the places where the second path takes part in it.

Built by `--radix-cache-backend dualpath`. Without a running `SecondPath` it is upstream's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.sglang_types import (
    Handle,
    InitLoadBackParams,
    PrefetchOperation,
    StorageMetricsCollector,
)

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.engine import SecondPath
    from dualpath_sglang.sglang_types import UnifiedRadixCache
else:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

log = logging.getLogger("dualpath")


class StoreShare:
    """SGLang's counters while a load is committed: what D delivered was not read from the store."""

    def __init__(self, upstream: StorageMetricsCollector, peer_tokens: int) -> None:
        self._upstream = upstream
        self._peer_tokens = peer_tokens

    def log_prefetched_tokens(self, prefetched_tokens: int) -> None:
        self._upstream.log_prefetched_tokens(max(0, prefetched_tokens - self._peer_tokens))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upstream, name)


class DualPathRadixCache(UnifiedRadixCache):
    """Scheduler thread only, like its base."""

    second_path: SecondPath | None = None
    storage_metrics_collector: StorageMetricsCollector | None

    def check_hicache_events(self) -> None:
        super().check_hicache_events()
        if self.second_path is not None:
            self.second_path.tick()

    def query_storage_hit_length(self, *args: Any, **kwargs: Any) -> int:
        """D promises what it holds: upstream would ask the store here, blocking, every round."""
        if self.second_path is None:
            return int(super().query_storage_hit_length(*args, **kwargs))
        return 0

    def prefetch_from_storage(
        self,
        request: Handle,
        *args: Any,
        matched_prefix_tokens: Sequence[int] | None = None,
        storage_hit_end: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Where a plan says how far the store goes and the tree goes as far, there is nothing to
        load. Upstream would then ask the store for the pages behind, again and again."""
        missing = (storage_hit_end or 0) - len(matched_prefix_tokens or ())
        if storage_hit_end is not None and missing <= 0:
            return None
        if self.second_path is not None and not self.second_path.may_load(request, missing):
            # Asked for again when there is room (`SecondPath.tick`).
            return None
        return super().prefetch_from_storage(
            request,
            *args,
            matched_prefix_tokens=matched_prefix_tokens,
            storage_hit_end=storage_hit_end,
            **kwargs,
        )

    def init_load_back(self, params: InitLoadBackParams) -> Any:
        """A request is admitted: from here on upstream locks what it copies to the device."""
        result = super().init_load_back(params)
        if self.second_path is not None and params.req is not None:
            self.second_path.on_admitted(adapter.handle_of(params.req))
        return result

    def check_prefetch_progress(self, request: Handle) -> bool:
        """False keeps a request out of the next batch."""
        if self.second_path is not None and self.second_path.must_wait(request):
            return False
        return bool(super().check_prefetch_progress(request))

    def _can_terminate_prefetch(self, operation: PrefetchOperation) -> bool:
        """Loads end by their own deadline; an operation without pages waits for a store query."""
        if self.second_path is None:
            return bool(super()._can_terminate_prefetch(operation))
        return bool(self.second_path.is_overdue(operation))

    def release_aborted_request(self, request: Handle) -> None:
        if self.second_path is not None:
            self.second_path.on_abort(request)
        super().release_aborted_request(request)

    def reset(self) -> None:
        if self.second_path is not None:
            self.second_path.on_reset()
        super().reset()

    def is_waiting_for_query(self, request: Handle) -> bool:
        """Has this request an operation that has no pages yet?"""
        info = self.ongoing_prefetch.get(request)
        return info is not None and sglang_pool.waits_for_query(info.operation)

    def commit_load(self, operation: PrefetchOperation, pages: int, peer_pages: int) -> int:
        """Put the first `pages` pages of an operation into the tree and release the others;
        returns tokens that were new to the tree. The operation must not be used afterwards."""
        info = self.ongoing_prefetch.get(operation.handle)
        new = 0
        if info is not None and info.operation is operation:
            operation.completed_tokens = pages * self.page_size
            upstream = self.storage_metrics_collector
            if upstream is not None:
                self.storage_metrics_collector = StoreShare(upstream, peer_pages * self.page_size)
            try:
                self._handle_prefetch_result(operation)
            finally:
                self.storage_metrics_collector = upstream
            new = self._leave_out_peer(operation.handle, pages, peer_pages)
        self.cache_controller.append_host_mem_release(
            operation.host_indices[operation.completed_tokens :]
        )
        return new

    def _leave_out_peer(self, handle: Handle, pages: int, peer_pages: int) -> int:
        """SGLang reports as read from the store what is counted here: not what D delivered, which
        is the head of an operation. Pages that the tree had already are its first ones, too."""
        loaded = int(self.prefetch_loaded_tokens_by_reqid.get(handle, 0))
        known = pages * self.page_size - loaded
        by_peer = min(loaded, max(0, peer_pages * self.page_size - known))
        start = self.prefetch_loaded_storage_start_by_reqid.get(handle)
        if by_peer and start is not None:
            self.prefetch_loaded_tokens_by_reqid[handle] = loaded - by_peer
            self.prefetch_loaded_storage_start_by_reqid[handle] = start + by_peer
        return loaded
