"""What the second path knows of SGLang 0.5.21's objects; no other module reads their attributes.

`req`: Req. `cache`: UnifiedRadixCache. `op`: PrefetchOperation. `store`: MooncakeStore. Pages are
page numbers in the host pool: SGLang's host indices are token slots, those of a page consecutive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.store_reader import PageRead

TRANSFER_FAILED = range(-899, -799)
"""Mooncake's error codes (`types.h`) for a transfer that began; others move no byte."""

# --- requests ---------------------------------------------------------------------------------


def handle_of(req: Any) -> Any:
    """Key of everything the cache knows of a request; hashable."""
    return req.cache_request_handle


def room_of(req: Any) -> int:
    return int(req.bootstrap_room or 0)


def hints_of(req: Any) -> Any:
    return getattr(req, "kv_hints", None)


def matchable_tokens(req: Any) -> int:
    """Tokens of the prompt that a prefill engine may take from its cache, plus 1: less than the
    prompt where log-probabilities of it are asked for."""
    return int(req._compute_max_prefix_len(len(req.origin_input_ids))) + 1


def is_plain_text(req: Any) -> bool:
    """Neither multimodal nor a streaming session nor with embeddings: its page keys are hashes of
    its token ids alone."""
    session = getattr(req, "session", None)
    return (
        getattr(req, "multimodal_inputs", None) is None
        and getattr(req, "positional_embed_overrides", None) is None
        and getattr(req, "input_embeds", None) is None
        and getattr(req, "lora_id", None) is None
        and session is None
    )


# --- the host pool ----------------------------------------------------------------------------


def host_pool(cache: Any) -> HostPool:
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


def pages_of(indices: torch.Tensor, page_size: int) -> list[int]:
    """Token slots, whole pages in order -> page numbers."""
    return [int(slot) // page_size for slot in indices[::page_size].tolist()]


def slots_of(pages: Sequence[int], page_size: int) -> torch.Tensor:
    """Page numbers -> token slots int64 [len(pages) * page_size]."""
    first = torch.tensor(pages, dtype=torch.int64) * page_size
    return (first[:, None] + torch.arange(page_size)[None, :]).reshape(-1)


def alloc_pages(cache: Any, count: int) -> list[int] | None:
    """Take free pages, evicting from the tree's host tier if need be; None when there are none."""
    size = cache.page_size
    found = cache.cache_controller.mem_pool_host.alloc(
        count * size, reclaim=lambda need: cache.evict_host(need)
    )
    return None if found is None else pages_of(found, size)


def free_pages(cache: Any, pages: Sequence[int]) -> None:
    if pages:
        cache.cache_controller.mem_pool_host.free(slots_of(pages, cache.page_size))


def anchor_pool(cache: Any) -> Any:
    """The pool object whose `free` the hook on HostKVCache sees."""
    return cache.cache_controller.storage_host_pool


def free_set(cache: Any) -> set[int]:
    """Pages that the pool would give out."""
    pool = anchor_pool(cache)
    parts = [pool.free_slots, *pool.release_slots]
    return {page for part in parts for page in pages_of(part, cache.page_size)}


def release_queue_pages(cache: Any) -> set[int]:
    """Pages that SGLang will free at its next round."""
    queued = list(cache.cache_controller.host_mem_release_queue.queue)
    return {page for part in queued for page in pages_of(part, cache.page_size)}


def tree_pages(cache: Any) -> set[int] | None:
    """Host pages held by the tree; None with the Rust core, which cannot be walked."""
    collect = getattr(cache.tree_core, "_collect_all_nodes", None)
    if collect is None:
        return None
    from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE

    values = [node.component_data[BASE_COMPONENT_TYPE].host_value for node in collect()]
    return {p for v in values if v is not None for p in pages_of(v, cache.page_size)}


# --- prefetch operations ----------------------------------------------------------------------


def first_page(op: Any, page_size: int) -> int:
    return int(op.storage_start) // page_size


def op_pages(op: Any, page_size: int) -> list[int]:
    return pages_of(op.host_indices, page_size)


def prefetch_pages(cache: Any) -> set[int]:
    """Pages of operations that SGLang still waits for."""
    tensors = [info.host_indices for info in cache.ongoing_prefetch.values()]
    return {p for t in tensors if t is not None for p in pages_of(t, cache.page_size)}


def move_page(op: Any, index: int, page: int, page_size: int) -> None:
    """The `index`-th page of an operation lies in host page `page` from now on. The cache's record
    of the operation shares this tensor."""
    at = slice(index * page_size, (index + 1) * page_size)
    op.host_indices[at] = slots_of([page], page_size)


def waits_for_query(op: Any) -> bool:
    """It has no pages in the host pool yet."""
    return op.host_indices is None


def divert_prefetches(cache: Any, path: Any) -> None:
    """Operations that have their pages go to `path.take` instead of upstream's one reading thread.

    On the queue object, since what puts them there is a closure. Stop marks pass through, and so
    does what `take` raises for. `holds` of the pool: what the hook on its `free` asks.
    """
    buffer = cache.cache_controller.prefetch_buffer
    upstream = buffer.put
    taken = guarded("taking over a prefetch", lambda op: False)(path.take)

    def put(op: Any, *args: Any, **kwargs: Any) -> None:
        if op is None or op.pool_transfers or not taken(op):
            upstream(op, *args, **kwargs)

    buffer.put = put
    anchor_pool(cache).dualpath_holds = path.holds


def is_diverted(cache: Any) -> bool:
    """Detaching and attaching a store at run time makes new queues."""
    return "put" in vars(cache.cache_controller.prefetch_buffer)


def forget_prefetch(cache: Any, handle: Any) -> None:
    """Last resort: a request must not wait for an operation that cannot be committed."""
    cache.ongoing_prefetch.pop(handle, None)


# --- the tree ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """covered: tokens on device and host. device: those on the device. node: deepest one matched.
    host_node: may carry a prefetch or a host lock (null: it has no host copy)."""

    covered: int
    device: int
    node: Any
    host_node: Any | None


def match(cache: Any, req: Any, end: int) -> Match:
    """The longest cached prefix within the first `end` tokens of a prompt."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(
        req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt, limit=end
    )
    found = cache.match_prefix(MatchPrefixParams(key=key))
    device = len(found.device_indices)
    node = found.last_host_node
    usable = cache.is_backuped(node) or cache.is_root(node)
    return Match(device + found.host_hit_length, device, node, node if usable else None)


@dataclass(frozen=True)
class HostRun:
    """Pages from `first` of a prompt that lie in the host pool, and the hashes of their tokens."""

    first: int
    pages: list[int]
    hashes: list[str]


def host_runs(cache: Any, req: Any, end: int) -> list[HostRun]:
    """Which pages within the first `end` tokens have valid bytes in the host pool.

    A node's host copy counts only when its device-to-host copy has ended. Walks by matching, since
    the Rust core gives no node by its id; each boundary asked for exists already but the first.
    """
    size = cache.page_size
    pending = {n for w in cache.ongoing_write_through.values() for n in w.publish_node_ids}
    runs: list[HostRun] = []
    while end > 0:
        node = match(cache, req, end).node
        if cache.is_root(node):
            break
        first = len(cache.get_prefix_hash_values(node))
        spec = cache.tree_core.build_storage_backup_spec(node, False)
        if spec is not None and node not in pending and spec.host_value is not None:
            runs.append(HostRun(first, pages_of(spec.host_value, size), list(spec.hash_value)))
        if first * size >= end:
            break
        end = first * size
    return runs[::-1]


def start_prefetch(cache: Any, req: Any, found: Match, end: int) -> bool:
    """Have the pages between a match and `end` read from the store into the host pool. False:
    declined (too little memory now), or nothing to read."""
    tokens, at = req.origin_input_ids, found.covered
    handle = handle_of(req)
    cache.prefetch_from_storage(
        handle,
        found.host_node,
        tokens[at:end],
        cache.get_last_hash_value(found.host_node),
        None,
        matched_prefix_tokens=tokens[:at],
        extra_key=req.extra_key,
        cache_salt=req.cache_salt,
        storage_hit_end=end,
    )
    # SGLang's own retry list is served on prefill engines only.
    cache.storage_prefetch_retries.cancel(handle.rid)
    return bool(cache.has_ongoing_prefetch(handle))


def pin(cache: Any, node: Any) -> Any:
    """Keep a node's host copy, and with it those of its ancestors; returns the receipt."""
    return cache.inc_host_lock_ref(node).to_dec_params()


def unpin(cache: Any, node: Any, receipt: Any) -> None:
    cache.dec_host_lock_ref(node, receipt)


def is_root(cache: Any, node: Any) -> bool:
    return bool(cache.is_root(node))


def drop_prefetch(cache: Any, handle: Any) -> None:
    """End a request's prefetch, whatever its state, and release what it holds."""
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestOutcome

    cache.finish(handle, CacheRequestOutcome.ABORT)


# --- the store --------------------------------------------------------------------------------


def store_of(cache: Any) -> Any:
    return cache.cache_controller.storage_backend


def store_facts(cache: Any) -> dict[str, str]:
    """Where and how this engine's client reaches the store."""
    config = store_of(cache).config
    return {
        "master": str(config.master_server_address),
        "protocol": str(config.protocol),
        "device": str(config.device_name),
        "tenant": str(config.tenant_id),
    }


def read_store(cache: Any, hashes: Sequence[str], pages: Sequence[int]) -> list[PageRead]:
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


# --- the engine -------------------------------------------------------------------------------


def fingerprint(scheduler: Any, cache: Any, pool: HostPool, keys: KeyLayout | None) -> str:
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
        "keys": None if keys is None else [keys.prefix, list(keys.suffixes)],
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def decode_queues(scheduler: Any) -> tuple[list[Any], list[Any]]:
    """Decode requests that wait for memory, and those that wait for their KV."""
    return (
        scheduler.disagg_decode_prealloc_queue.queue,
        scheduler.disagg_decode_transfer_queue.queue,
    )


def restore_pending(decode_req: Any) -> bool:
    """Its prefix is still to be copied from the host pool to the device."""
    return str(decode_req.hicache_restore_status.value) == "pending"


def dead_storage_threads(cache: Any) -> list[str]:
    names = ("prefetch_thread", "prefetch_io_aux_thread", "prefetch_sync_thread", "backup_thread")
    threads = {name: getattr(cache.cache_controller, name, None) for name in names}
    return [name for name, thread in threads.items() if thread is None or not thread.is_alive()]


def is_idle(scheduler: Any) -> bool:
    return bool(scheduler.is_fully_idle())


def fewest_tokens(cache: Any) -> int:
    """SGLang declines to read fewer from the store (`prefetch_threshold`)."""
    return int(cache.cache_controller.prefetch_threshold)


def prefetch_is_limited(cache: Any) -> bool:
    """Half of the host pool is taken by prefetches."""
    return bool(cache.cache_controller.prefetch_rate_limited())


def local_host() -> str:
    """The address that SGLang itself gives to its peers."""
    from sglang.srt.utils.network import get_local_ip_auto

    return str(get_local_ip_auto())


def live_handles(decode_reqs: Iterable[Any]) -> dict[Any, Any]:
    return {handle_of(d.req): d for d in decode_reqs}
