"""What the second path relies on in SGLang beside its hooks: methods that it overrides, those that
it calls, and the statements it builds on. A change in a new version fails here first."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dualpath_sglang import hooks
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook

install_shims()

_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
_STORE = "sglang.srt.mem_cache.storage.mooncake_store.mooncake_store.MooncakeStore"
_HOST = "sglang.srt.mem_cache.pool_host"
_CONTROLLER = "sglang.srt.managers.cache_controller.HiCacheController"
_TREE_CORES = (
    "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore",
    "sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore",
)

USED: dict[str, tuple[str, ...]] = {
    f"{_CACHE}.prefetch_from_storage": (
        "request",
        "last_host_node_id",
        "new_input_tokens",
        "last_hash",
        "prefix_keys",
        "matched_prefix_tokens",
        "extra_key",
        "cache_salt",
        "storage_hit_end",
    ),
    f"{_CACHE}.has_ongoing_prefetch": ("handle",),
    f"{_CACHE}.pop_prefetch_loaded_tokens": ("request",),
    f"{_CACHE}.evict_host": ("num_tokens",),
    f"{_CACHE}.match_prefix": ("params",),
    f"{_CACHE}.inc_host_lock_ref": ("node_id",),
    f"{_CACHE}.dec_host_lock_ref": ("node_id", "params"),
    f"{_CACHE}.is_backuped": ("node_id",),
    f"{_CACHE}.is_root": ("node_id",),
    f"{_CACHE}.get_last_hash_value": ("node_id",),
    f"{_CACHE}.get_prefix_hash_values": ("node_id",),
    f"{_CACHE}._handle_prefetch_result": ("operation",),
    f"{_CONTROLLER}.append_host_mem_release": ("host_indices",),
    f"{_HOST}.group.HostPoolGroup.alloc": ("need_size", "reclaim"),
    f"{_HOST}.group.HostPoolGroup.free": ("indices",),
    f"{_HOST}.group.HostPoolGroup.layout_lease": (),
    f"{_HOST}.mha.MHATokenToKVPoolHost.get_page_buffer_meta": ("indices",),
    f"{_HOST}.mla.MLATokenToKVPoolHost.get_page_buffer_meta": ("indices",),
    f"{_STORE}._tag_keys": ("keys",),
    f"{_STORE}._batch_preprocess": ("keys", "host_indices"),
    f"{_STORE}._get_batch_zero_copy_impl": ("key_strs", "buffer_ptrs", "buffer_sizes"),
    **{
        f"{core}.build_storage_backup_spec": ("node_id", "pass_prefix_keys") for core in _TREE_CORES
    },
    "sglang.srt.mem_cache.utils.get_hash_str": ("token_ids",),
    "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len": ("input_len",),
    "sglang.srt.utils.network.get_local_ip_auto": (),
    "sglang.srt.mem_cache.registry.register_radix_cache_backend": ("name", "factory"),
    "sglang.srt.mem_cache.registry.create_unified_radix_cache": ("ctx", "cache_class"),
}


def test_what_is_called_is_there_with_its_parameters() -> None:
    wanted = [Hook(target, "after", print, "called", names) for target, names in USED.items()]
    assert hooks.check_targets(wanted) == []


def overridden() -> list[tuple[str, Any, Any]]:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

    return [
        (name, ours, getattr(UnifiedRadixCache, name, None))
        for name, ours in vars(DualPathRadixCache).items()
        if inspect.isfunction(ours)
    ]


OWN = {"is_waiting_for_query", "commit_load", "_leave_out_peer"}


def test_what_is_overridden_exists_upstream_and_takes_the_same() -> None:
    for name, ours, theirs in overridden():
        assert (theirs is None) == (name in OWN), name
        if theirs is None:
            continue
        names = [p for p in inspect.signature(ours).parameters if p not in ("args", "kwargs")]
        assert set(names) <= set(inspect.signature(theirs).parameters), name


@pytest.mark.parametrize(
    ("target", "statement"),
    [
        (f"{_CACHE}._drain_storage_control_queues_impl", "cc.prefetch_buffer.put(operation)"),
        (f"{_CACHE}._drain_storage_control_queues_impl", "operation.host_indices = host_indices"),
        (f"{_CACHE}.prefetch_from_storage", "operation.storage_start = storage_start"),
        (f"{_CACHE}.check_prefetch_progress", "self._can_terminate_prefetch("),
        (f"{_CACHE}._handle_prefetch_result", "host_indices[:completed_tokens]"),
        (f"{_CACHE}._handle_prefetch_result", "self.prefetch_loaded_tokens_by_reqid[request]"),
        (
            "sglang.srt.disaggregation.decode.DecodePreallocQueue.pop_preallocated",
            "if not decode_req.waiting_for_input:\n                continue",
        ),
    ],
)
def test_a_statement_that_is_built_on_is_still_there(target: str, statement: str) -> None:
    import pkgutil

    assert statement in inspect.getsource(pkgutil.resolve_name(target))


def test_a_short_object_is_no_success_for_us() -> None:
    """Upstream takes any positive number of bytes for a whole object."""
    from dualpath_sglang.secondpath.sglang_pool import _page_read
    from dualpath_sglang.secondpath.store_reader import PageRead

    assert _page_read([64, 64], [64, 64]) is PageRead.OK
    assert _page_read([64, 63], [64, 64]) is PageRead.ABSENT
    assert _page_read([-704, -704], [64, 64]) is PageRead.ABSENT
    assert _page_read([64, -800], [64, 64]) is PageRead.BROKEN
