"""SGLang's host pool, prefetch operations and store, as the second path needs them.

With `adapter` the only module of it that reads SGLang's attributes. Pages are page numbers in the
host pool: SGLang's host indices are token slots, those of a page consecutive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.store_reader import PageRead
from dualpath_sglang.sglang_types import (
    Handle,
    HostKVCache,
    MooncakeStore,
    PrefetchOperation,
    Scheduler,
    UnifiedRadixCache,
    UnifiedTreeNode,
)

TRANSFER_FAILED = range(-899, -799)
"""Mooncake's error codes (`types.h`) for a transfer that began; others move no byte."""
_HOLDS = "dualpath_holds"
"""An attribute of ours at SGLang's pool."""

# --- the host pool ----------------------------------------------------------------------------


def host_pool(cache: UnifiedRadixCache) -> HostPool:
    """Of the live pool. Raises ValueError for a layout whose pages are not contiguous."""
    pool = cache.cache_controller.storage_host_pool
    size = int(pool.page_size)
    first = torch.arange(size, dtype=torch.int64)
    starts, lengths = pool.get_page_buffer_meta(first)
    second, _ = pool.get_page_buffer_meta(first + size)
    page_bytes = int(lengths[0])
    if len(starts) > 2 or second[0] - starts[0] != page_bytes:
        raise ValueError(f"pages of layout {pool.layout} are not contiguous")
    v_offset = int(starts[1] - starts[0]) if len(starts) == 2 else 0
    return HostPool(int(starts[0]), page_bytes, v_offset, int(pool.size) // size, size)


def fingerprint(
    scheduler: Scheduler, cache: UnifiedRadixCache, pool: HostPool, keys: KeyLayout
) -> str:
    """Equal on engines whose host pages are interchangeable, byte for byte."""
    live = anchor_pool(cache)
    facts = {
        "model": str(scheduler.server_args.served_model_name),
        "path": str(scheduler.server_args.model_path).rstrip("/").rsplit("/", 1)[-1],
        "dtype": str(live.dtype),
        "layout": str(live.layout),
        "page_size": pool.page_size,
        "page_bytes": pool.page_bytes,
        "k_and_v": pool.v_offset > 0,
        "tp_size": int(scheduler.server_args.tp_size),
        "keys": [keys.prefix, list(keys.suffixes)],
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pages_of(indices: torch.Tensor, page_size: int) -> list[int]:
    """Token slots, whole pages in order -> page numbers."""
    return [int(slot) // page_size for slot in indices[::page_size].tolist()]


def slots_of(pages: Sequence[int], page_size: int) -> torch.Tensor:
    """Page numbers -> token slots int64 [len(pages) * page_size]."""
    first = torch.tensor(pages, dtype=torch.int64) * page_size
    return (first[:, None] + torch.arange(page_size)[None, :]).reshape(-1)


def alloc_pages(cache: UnifiedRadixCache, count: int) -> list[int] | None:
    """Take free pages, evicting from the tree's host tier if need be; None when there are none."""
    size = cache.page_size
    found = cache.cache_controller.mem_pool_host.alloc(
        count * size, reclaim=lambda need: cache.evict_host(need)
    )
    return None if found is None else pages_of(found, size)


def free_pages(cache: UnifiedRadixCache, pages: Sequence[int]) -> None:
    if pages:
        cache.cache_controller.mem_pool_host.free(slots_of(pages, cache.page_size))


def anchor_pool(cache: UnifiedRadixCache) -> HostKVCache:
    """The pool object whose `free` the hook on HostKVCache sees."""
    return cache.cache_controller.storage_host_pool


def pool_tokens(cache: UnifiedRadixCache) -> tuple[int, int]:
    """Of the host pool and of the device pool."""
    pool = anchor_pool(cache)
    return int(pool.size), int(pool.device_capacity_tokens)


def free_set(cache: UnifiedRadixCache) -> set[int]:
    """Pages that the pool would give out."""
    pool = anchor_pool(cache)
    parts = [pool.free_slots, *pool.release_slots]
    return {page for part in parts for page in pages_of(part, cache.page_size)}


def release_queue_pages(cache: UnifiedRadixCache) -> set[int]:
    """Pages that SGLang will free at its next round."""
    queued = list(cache.cache_controller.host_mem_release_queue.queue)
    return {page for part in queued for page in pages_of(part, cache.page_size)}


def tree_pages(cache: UnifiedRadixCache) -> set[int] | None:
    """Host pages held by the tree; None with the Rust core, which cannot be walked."""
    collect: Callable[[], list[UnifiedTreeNode]] | None
    collect = getattr(cache.tree_core, "_collect_all_nodes", None)
    if collect is None:
        return None
    from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE

    values = [node.component_data[BASE_COMPONENT_TYPE].host_value for node in collect()]
    return {p for v in values if v is not None for p in pages_of(v, cache.page_size)}


# --- prefetch operations ----------------------------------------------------------------------


def first_page(op: PrefetchOperation, page_size: int) -> int:
    return int(op.storage_start) // page_size


def op_pages(op: PrefetchOperation, page_size: int) -> list[int]:
    return pages_of(op.host_indices, page_size)


def prefetch_pages(cache: UnifiedRadixCache) -> set[int]:
    """Pages of operations that SGLang still waits for."""
    tensors = [info.host_indices for info in cache.ongoing_prefetch.values()]
    return {p for t in tensors if t is not None for p in pages_of(t, cache.page_size)}


def move_page(op: PrefetchOperation, index: int, page: int, page_size: int) -> None:
    """The `index`-th page of an operation lies in host page `page` from now on. The cache's record
    of the operation shares this tensor."""
    at = slice(index * page_size, (index + 1) * page_size)
    op.host_indices[at] = slots_of([page], page_size)


def waits_for_query(op: PrefetchOperation) -> bool:
    """It has no pages in the host pool yet."""
    return op.host_indices is None


def asked_at(op: PrefetchOperation) -> float:
    """Monotonic seconds."""
    return float(op.start_time)


def divert_prefetches(
    cache: UnifiedRadixCache, take: Callable[[PrefetchOperation], bool], holds: PageHolds
) -> None:
    """Operations that have their pages go to `take` instead of upstream's one reading thread.

    On the queue object, since what puts them there is a closure. Stop marks pass through, and so
    does what `take` raises for. `holds`: what the hook on the pool's `free` asks.
    """
    buffer = cache.cache_controller.prefetch_buffer
    upstream = buffer.put
    taken = guarded("taking over a prefetch", lambda op: False)(take)

    def put(op: PrefetchOperation | None, *args: Any, **kwargs: Any) -> None:
        if op is None or op.pool_transfers or not taken(op):
            upstream(op, *args, **kwargs)

    vars(buffer)["put"] = put
    vars(anchor_pool(cache))[_HOLDS] = holds


def holds_of(pool: HostKVCache) -> PageHolds | None:
    """What `divert_prefetches` left at a pool; another pool has none."""
    found: PageHolds | None = vars(pool).get(_HOLDS)
    return found


def is_diverted(cache: UnifiedRadixCache) -> bool:
    """Detaching and attaching a store at run time makes new queues."""
    return "put" in vars(cache.cache_controller.prefetch_buffer)


def forget_prefetch(cache: UnifiedRadixCache, handle: Handle) -> None:
    """Last resort: a request must not wait for an operation that cannot be committed."""
    cache.ongoing_prefetch.pop(handle, None)


def prefetching_tokens(cache: UnifiedRadixCache) -> int:
    """Tokens that prefetches under way have asked for; SGLang lets them be half of the pool."""
    return int(cache.cache_controller.prefetch_tokens_occupied)


def fewest_tokens(cache: UnifiedRadixCache) -> int:
    """SGLang declines to read fewer from the store (`prefetch_threshold`)."""
    return int(cache.cache_controller.prefetch_threshold)


def dead_storage_threads(cache: UnifiedRadixCache) -> list[str]:
    controller = cache.cache_controller
    threads = {
        "prefetch_thread": controller.prefetch_thread,
        "prefetch_io_aux_thread": controller.prefetch_io_aux_thread,
        "prefetch_sync_thread": controller.prefetch_sync_thread,
        "backup_thread": controller.backup_thread,
    }
    return [name for name, thread in threads.items() if not thread.is_alive()]


# --- the store --------------------------------------------------------------------------------


def store_of(cache: UnifiedRadixCache) -> MooncakeStore:
    return cache.cache_controller.storage_backend


def store_facts(cache: UnifiedRadixCache) -> dict[str, str]:
    """Where and how this engine's client reaches the store."""
    config = store_of(cache).config
    return {
        "master": str(config.master_server_address),
        "protocol": str(config.protocol),
        "device": str(config.device_name),
        "tenant": str(config.tenant_id),
    }


def read_store(
    cache: UnifiedRadixCache, hashes: Sequence[str], pages: Sequence[int]
) -> list[PageRead]:
    """Read pages into the host pool, blocking. SGLang's own reader takes a short object for whole;
    here every object must have its full length. May raise what the store raises."""
    store, size = store_of(cache), cache.page_size
    keys, pointers, lengths = store._batch_preprocess(
        store._tag_keys(list(hashes)), slots_of(pages, size)
    )
    with cache.cache_controller.mem_pool_host.layout_lease():
        results = store._get_batch_zero_copy_impl(keys, pointers, lengths)
    each = len(keys) // len(hashes)
    wanted = [sum(n) if isinstance(n, list) else n for n in lengths]
    return [
        _page_read(results[i : i + each], wanted[i : i + each]) for i in range(0, len(keys), each)
    ]


def _page_read(results: Sequence[int], wanted: Sequence[int]) -> PageRead:
    if all(got == length for got, length in zip(results, wanted, strict=True)):
        return PageRead.OK
    broken = any(got in TRANSFER_FAILED for got in results)
    return PageRead.BROKEN if broken else PageRead.ABSENT
