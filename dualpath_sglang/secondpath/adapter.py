"""SGLang's requests, tree and decode queues, as the second path needs them.

With `sglang_pool` the only module of it that reads SGLang's attributes. `req`: Req. `cache`:
UnifiedRadixCache. Pages are page numbers in the host pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dualpath_sglang.secondpath import sglang_pool

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
            runs.append(
                HostRun(first, sglang_pool.pages_of(spec.host_value, size), list(spec.hash_value))
            )
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


# --- the engine -------------------------------------------------------------------------------


def decode_queues(scheduler: Any) -> tuple[list[Any], list[Any]]:
    """Decode requests that wait for memory, and those that wait for their KV."""
    return (
        scheduler.disagg_decode_prealloc_queue.queue,
        scheduler.disagg_decode_transfer_queue.queue,
    )


def keep_waiting(decode_req: Any) -> None:
    """Out of this round's pre-allocation."""
    decode_req.waiting_for_input = False


def restore_pending(decode_req: Any) -> bool:
    """Its prefix is still to be copied from the host pool to the device."""
    return str(decode_req.hicache_restore_status.value) == "pending"


def restore_failed(decode_req: Any) -> bool:
    return str(decode_req.hicache_restore_status.value) == "failed"


def restore_again(decode_req: Any) -> None:
    decode_req.hicache_restore_status = type(decode_req.hicache_restore_status).PENDING


def copies_to_device(cache: Any) -> bool:
    """Are any under way?"""
    return bool(cache.ongoing_load_back)


def is_restored(decode_req: Any) -> bool:
    """Its copy to the device has ended."""
    return decode_req.hicache_restore_lock is not None


def cut_restored(decode_req: Any) -> None:
    """Leave out what was copied to the device beyond the prefix that was announced to P."""
    match, indices = decode_req.prefix_match, decode_req.hicache_restored_kv_indices
    if match is None or indices is None:
        return
    announced = match.decode_prefix_len - match.l1_prefix_len
    if len(indices) > announced:
        decode_req.hicache_restored_kv_indices = indices[:announced]


def ask_for_load(scheduler: Any, req: Any) -> None:
    """Have SGLang start a waiting request's prefetch, as it does at arrival."""
    scheduler._prefetch_kvcache(req)


def is_idle(scheduler: Any) -> bool:
    return bool(scheduler.is_fully_idle())


def local_host() -> str:
    """The address that SGLang itself gives to its peers."""
    from sglang.srt.utils.network import get_local_ip_auto

    return str(get_local_ip_auto())


def live_handles(decode_reqs: Iterable[Any]) -> dict[Any, Any]:
    return {handle_of(d.req): d for d in decode_reqs}
