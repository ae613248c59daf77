"""SGLang's requests, tree and decode queues, as the second path needs them.

With `sglang_pool` the only module of it that reads SGLang's attributes. Pages are page numbers in
the host pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dualpath_sglang.secondpath import sglang_pool
from dualpath_sglang.sglang_types import (
    DecodeRequest,
    Handle,
    LockReceipt,
    Node,
    Req,
    RequestHandle,
    Scheduler,
    UnifiedRadixCache,
)

# --- requests ---------------------------------------------------------------------------------


def handle_of(req: Req) -> RequestHandle:
    """Key of everything the cache knows of a request; hashable."""
    return req.cache_request_handle


def room_of(req: Req) -> int:
    return int(req.bootstrap_room or 0)


def hints_of(req: Req) -> object:
    return req.kv_hints


def matchable_tokens(req: Req) -> int:
    """Tokens of the prompt that a prefill engine may take from its cache, plus 1: less than the
    prompt where log-probabilities of it are asked for."""
    return int(req._compute_max_prefix_len(len(req.origin_input_ids))) + 1


def is_plain_text(req: Req) -> bool:
    """Neither multimodal nor a streaming session nor with embeddings: its page keys are hashes of
    its token ids alone."""
    return (
        req.multimodal_inputs is None
        and req.positional_embed_overrides is None
        and req.input_embeds is None
        and req.lora_id is None
        and req.session is None
    )


# --- the tree ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """covered: tokens on device and host. device: those on the device. node: deepest one matched.
    host_node: may carry a prefetch or a host lock (null: it has no host copy)."""

    covered: int
    device: int
    node: Node
    host_node: Node | None


def match(cache: UnifiedRadixCache, req: Req, end: int) -> Match:
    """The longest cached prefix within the first `end` tokens of a prompt."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(
        req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt, limit=end
    )
    found = cache.match_prefix(MatchPrefixParams(key=key))
    device = int(found.device_prefix_len)
    node = found.last_host_node
    usable = cache.is_backuped(node) or cache.is_root(node)
    return Match(device + found.host_hit_length, device, node, node if usable else None)


@dataclass(frozen=True)
class HostRun:
    """Pages from `first` of a prompt that lie in the host pool, and the hashes of their tokens."""

    first: int
    pages: list[int]
    hashes: list[str]


def host_runs(cache: UnifiedRadixCache, req: Req, end: int) -> list[HostRun]:
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
            runs.append(
                HostRun(first, sglang_pool.pages_of(spec.host_value, size), list(spec.hash_value))
            )
        if first * size >= end:
            break
        end = first * size
    return runs[::-1]


def start_prefetch(cache: UnifiedRadixCache, req: Req, found: Match, end: int) -> bool:
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


def pin(cache: UnifiedRadixCache, node: Node) -> LockReceipt:
    """Keep a node's host copy, and with it those of its ancestors; returns the receipt."""
    return cache.inc_host_lock_ref(node).to_dec_params()


def unpin(cache: UnifiedRadixCache, node: Node, receipt: LockReceipt) -> None:
    cache.dec_host_lock_ref(node, receipt)


def is_root(cache: UnifiedRadixCache, node: Node) -> bool:
    return bool(cache.is_root(node))


def drop_prefetch(cache: UnifiedRadixCache, handle: Handle) -> None:
    """End a request's prefetch, whatever its state, and release what it holds."""
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestOutcome

    cache.finish(handle, CacheRequestOutcome.ABORT)


# --- the engine -------------------------------------------------------------------------------


def decode_queues(scheduler: Scheduler) -> tuple[list[DecodeRequest], list[DecodeRequest]]:
    """Decode requests that wait for memory, and those that wait for their KV."""
    return (
        scheduler.disagg_decode_prealloc_queue.queue,
        scheduler.disagg_decode_transfer_queue.queue,
    )


def keep_waiting(decode_req: DecodeRequest) -> None:
    """Out of this round's pre-allocation."""
    decode_req.waiting_for_input = False


def restore_pending(decode_req: DecodeRequest) -> bool:
    """Its prefix is still to be copied from the host pool to the device."""
    return str(decode_req.hicache_restore_status.value) == "pending"


def restore_failed(decode_req: DecodeRequest) -> bool:
    return str(decode_req.hicache_restore_status.value) == "failed"


def restore_again(decode_req: DecodeRequest) -> None:
    from sglang.srt.disaggregation.decode_hicache_mixin import HiCacheRestoreResult

    decode_req.hicache_restore_status = HiCacheRestoreResult.PENDING


def ask_for_load(scheduler: Scheduler, req: Req) -> None:
    """Have SGLang start a waiting request's prefetch, as it does at arrival."""
    scheduler._prefetch_kvcache(req)


def is_idle(scheduler: Scheduler) -> bool:
    return bool(scheduler.is_fully_idle())


def local_host() -> str:
    """The address that SGLang itself gives to its peers."""
    from sglang.srt.utils.network import get_local_ip_auto

    return str(get_local_ip_auto())


def live_handles(decode_reqs: Iterable[DecodeRequest]) -> dict[Handle, DecodeRequest]:
    return {handle_of(d.req): d for d in decode_reqs}
