"""Every attribute and method of SGLang's objects that this project uses, class by class.

mypy holds that nothing else of them is used: objects of SGLang are typed with the classes below,
and what it cannot see (`Any`) is not looked into (`tests/contract/test_sglang_types.py`). The same
tests hold that each class, attribute, method and parameter exists in the installed SGLang, by its
source, and `make check-sglang VERSION=x` says which of them another release lacks.

What SGLang only hands back and forth is an `object`. Shapes and units are SGLang's own: indices are
token slots, lengths are tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from queue import Queue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

_Class = TypeVar("_Class", bound=type)

SOURCES: dict[type, tuple[str, ...]] = {}
"""Class below -> the classes of SGLang that it stands for, as dotted paths."""


def _of(*paths: str) -> Callable[[_Class], _Class]:
    def note(cls: _Class) -> _Class:
        SOURCES[cls] = paths
        return cls

    return note


_SRT = "sglang.srt"
_MEM = f"{_SRT}.mem_cache"
_BASE = f"{_MEM}.base_prefix_cache"
_DECODE = f"{_SRT}.disaggregation.decode"

Handle = object
"""`CacheRequestHandle`: the cache's key for a request; hashable."""
Node = object
"""A node of the tree: an id or an object, as the tree core has it."""
LockReceipt = object


# --- requests ----------------------------------------------------------------------------------


@_of(f"{_BASE}.CacheRequestHandle")
class RequestHandle(Protocol):
    rid: str


@_of(f"{_SRT}.managers.schedule_batch.Req")
class Req(Protocol):
    origin_input_ids: list[int]
    cache_request_handle: RequestHandle
    bootstrap_room: int | None
    kv_hints: object
    extra_key: str | None
    cache_salt: str | None
    session: object
    multimodal_inputs: object
    positional_embed_overrides: object
    input_embeds: object
    lora_id: str | None
    cached_tokens_device: int
    cached_tokens_host: int
    cached_tokens_storage: int
    customized_info: dict[str, list[object]] | None

    def _compute_max_prefix_len(self, input_len: int) -> int: ...


@_of(f"{_SRT}.managers.kv_hints.KvHintsEnvelope")
class KvHintsEnvelope(Protocol):
    """Read by name in `contract.plan`, which knows no SGLang."""

    actions: Sequence[object]


@_of(f"{_SRT}.managers.kv_hints.KvHintAction")
class KvHintAction(Protocol):
    action_type: str
    action_version: str
    payload: Mapping[str, object]


# --- the host pool and the storage controller --------------------------------------------------


@_of(
    f"{_MEM}.pool_host.mha.MHATokenToKVPoolHost",
    f"{_MEM}.pool_host.mla.MLATokenToKVPoolHost",
)
class HostKVCache(Protocol):
    size: int
    page_size: int
    layout: str
    dtype: torch.dtype
    device_capacity_tokens: int
    free_slots: torch.Tensor
    release_slots: list[torch.Tensor]

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]: ...


@_of(f"{_MEM}.pool_host.group.HostPoolGroup")
class HostPoolGroup(Protocol):
    def alloc(
        self, need_size: int, *, reclaim: Callable[[int], object] | None = None
    ) -> torch.Tensor | None: ...

    def free(self, indices: torch.Tensor) -> int: ...

    def layout_lease(self) -> AbstractContextManager[object]: ...


@_of(f"{_MEM}.hybrid_cache.hybrid_cache_controller.PrefetchOperation")
class PrefetchOperation(Protocol):
    handle: Handle
    hash_value: list[str]
    host_indices: torch.Tensor
    """None until the store has said what it has."""
    pool_transfers: object
    storage_start: int
    start_time: float
    completed_tokens: int


@_of(f"{_MEM}.storage.mooncake_store.mooncake_store.MooncakeStoreConfig")
class MooncakeStoreConfig(Protocol):
    master_server_address: str
    protocol: str
    device_name: str
    tenant_id: str


@_of(f"{_MEM}.hicache_storage.HiCacheStorageConfig")
class HiCacheStorageConfig(Protocol):
    tp_size: int


@_of(f"{_MEM}.storage.mooncake_store.mooncake_store.MooncakeStore")
class MooncakeStore(Protocol):
    config: MooncakeStoreConfig
    storage_config: HiCacheStorageConfig
    mem_pool_host: HostKVCache
    is_mla_backend: bool
    should_split_heads: bool
    enable_pp: bool
    dcp_size: int
    local_rank: int
    mha_suffix: str
    mla_suffix: str

    def _tag_keys(self, keys: list[str]) -> list[str]: ...

    def _batch_preprocess(
        self, keys: list[str], host_indices: torch.Tensor
    ) -> tuple[list[str], list[Any], list[Any]]: ...

    def _get_batch_zero_copy_impl(
        self, key_strs: list[str], buffer_ptrs: list[Any], buffer_sizes: list[Any]
    ) -> list[int]: ...

    @staticmethod
    def _pack_multi_buffer_meta(
        key_strs: list[str], ptr_list: list[int], element_size_list: list[int]
    ) -> tuple[list[Any], list[Any]]: ...

    def _get_mha_buffer_meta(
        self, keys: list[str], indices: torch.Tensor
    ) -> tuple[list[str], list[Any], list[Any]]: ...

    def _get_mla_buffer_meta(
        self, keys: list[str], indices: torch.Tensor
    ) -> tuple[list[str], list[Any], list[Any]]: ...


@_of(f"{_MEM}.hybrid_cache.hybrid_cache_controller.HybridCacheController")
class HybridCacheController(Protocol):
    enable_storage: bool
    storage_backend: MooncakeStore
    storage_host_pool: HostKVCache
    mem_pool_host: HostPoolGroup
    prefetch_buffer: Queue[PrefetchOperation | None]
    host_mem_release_queue: Queue[torch.Tensor]
    prefetch_tokens_occupied: int
    prefetch_threshold: int
    prefetch_thread: threading.Thread
    prefetch_io_aux_thread: threading.Thread
    prefetch_sync_thread: threading.Thread
    backup_thread: threading.Thread

    def append_host_mem_release(self, host_indices: torch.Tensor) -> None: ...


# --- the tree ----------------------------------------------------------------------------------


@_of(f"{_BASE}.MatchResult")
class MatchResult(Protocol):
    device_prefix_len: int
    host_hit_length: int
    last_host_node: Node


@_of(f"{_BASE}.IncLockRefResult")
class IncLockRefResult(Protocol):
    def to_dec_params(self) -> LockReceipt: ...


@_of(f"{_BASE}.InitLoadBackParams")
class InitLoadBackParams(Protocol):
    req: Req | None


@_of(f"{_MEM}.unified_cache.unified_tree_core.StorageBackupSpec")
class StorageBackupSpec(Protocol):
    host_value: torch.Tensor | None
    hash_value: list[str]


@_of(f"{_MEM}.unified_cache.components.base.ComponentData")
class ComponentData(Protocol):
    host_value: torch.Tensor | None


@_of(f"{_MEM}.unified_cache.unified_tree_core.UnifiedTreeNode")
class UnifiedTreeNode(Protocol):
    component_data: Sequence[ComponentData]
    """By type of component."""


@_of(
    f"{_MEM}.unified_cache.unified_tree_core.UnifiedTreeCore",
    f"{_MEM}.rust_tree_core.adapter.RustUnifiedTreeCore",
)
class TreeCore(Protocol):
    is_eagle: bool

    def build_storage_backup_spec(
        self, node_id: Node, pass_prefix_keys: bool
    ) -> StorageBackupSpec | None: ...


@_of(f"{_MEM}.unified_cache.unified_tree_core.UnifiedTreeCore")
class PythonTreeCore(TreeCore, Protocol):
    """The one that can be walked."""

    def _collect_all_nodes(self) -> list[UnifiedTreeNode]: ...


@_of(f"{_MEM}.storage_prefetch.StoragePrefetchRetries")
class StoragePrefetchRetries(Protocol):
    def cancel(self, req_id: str) -> None: ...


@_of(f"{_MEM}.unified_radix_cache._OngoingPrefetch")
class OngoingPrefetch(Protocol):
    host_indices: torch.Tensor | None
    operation: PrefetchOperation


@_of(f"{_MEM}.unified_radix_cache._OngoingWriteThrough")
class OngoingWriteThrough(Protocol):
    publish_node_ids: list[Node]


@_of(f"{_SRT}.observability.metrics_collector.StorageMetricsCollector")
class StorageMetricsCollector(Protocol):
    def log_prefetched_tokens(self, prefetched_tokens: int) -> None: ...


@_of(f"{_MEM}.unified_radix_cache.UnifiedRadixCache")
class UnifiedRadixCache(Protocol):
    page_size: int
    tree_components: tuple[Enum, ...]
    sidecar_pool_specs: list[object]
    tree_core: TreeCore
    cache_controller: HybridCacheController
    """None without a host pool, with which no second path starts."""
    storage_metrics_collector: StorageMetricsCollector | None
    storage_prefetch_retries: StoragePrefetchRetries
    ongoing_prefetch: dict[Handle, OngoingPrefetch]
    ongoing_write_through: dict[int, OngoingWriteThrough]
    prefetch_loaded_tokens_by_reqid: dict[Handle, int]
    prefetch_loaded_storage_start_by_reqid: dict[Handle, int]

    def match_prefix(self, params: object) -> MatchResult: ...

    def is_root(self, node_id: Node) -> bool: ...

    def is_backuped(self, node_id: Node) -> bool: ...

    def get_last_hash_value(self, node_id: Node) -> str | None: ...

    def get_prefix_hash_values(self, node_id: Node) -> list[str]: ...

    def inc_host_lock_ref(self, node_id: Node) -> IncLockRefResult: ...

    def dec_host_lock_ref(self, node_id: Node, params: LockReceipt) -> object: ...

    def evict_host(self, num_tokens: int) -> int: ...

    def prefetch_from_storage(
        self,
        request: Handle,
        last_host_node_id: Node,
        new_input_tokens: Sequence[int],
        last_hash: str | None = None,
        prefix_keys: list[str] | None = None,
        *,
        matched_prefix_tokens: Sequence[int] | None = None,
        extra_key: str | None = None,
        cache_salt: str | None = None,
        storage_hit_end: int | None = None,
    ) -> object: ...

    def has_ongoing_prefetch(self, handle: Handle) -> bool: ...

    def pop_prefetch_loaded_tokens(self, request: Handle) -> int: ...

    def check_prefetch_progress(self, request: Handle) -> bool: ...

    def _can_terminate_prefetch(self, operation: PrefetchOperation) -> bool: ...

    def _handle_prefetch_result(self, operation: PrefetchOperation) -> None: ...

    def query_storage_hit_length(self, *args: Any, **kwargs: Any) -> int: ...

    def init_load_back(self, params: InitLoadBackParams) -> object: ...

    def release_aborted_request(self, request: Handle) -> None: ...

    def finish(self, handle: Handle, outcome: object) -> None: ...

    def check_hicache_events(self) -> None: ...

    def reset(self) -> None: ...


# --- the decode engine's queues ----------------------------------------------------------------


@_of(f"{_SRT}.disaggregation.decode_hicache_mixin.DecodePrefixMatch")
class DecodePrefixMatch(Protocol):
    l1_prefix_len: int
    l2_host_hit_length: int
    l3_storage_hit_length: int


@_of(f"{_DECODE}.DecodeRequest")
class DecodeRequest(Protocol):
    req: Req
    waiting_for_input: bool
    prefix_match: DecodePrefixMatch | None
    hicache_restore_status: Enum


@_of(f"{_DECODE}.DecodePreallocQueue", f"{_DECODE}.DecodeTransferQueue")
class DecodeQueue(Protocol):
    queue: list[DecodeRequest]
    tree_cache: UnifiedRadixCache


@_of(f"{_DECODE}.DecodeTransferQueue")
class TransferQueue(DecodeQueue, Protocol):
    _deferred_releases: list[object]
    """Memory of aborted transfers that is kept until no byte can arrive any more."""


# --- the scheduler -----------------------------------------------------------------------------


@_of(f"{_SRT}.server_args.ServerArgs")
class ServerArgs(Protocol):
    """As passed; what SGLang made of them: `resolved_dict`."""

    hicache_storage_backend: str | None
    served_model_name: str | None
    model_path: str
    tp_size: int

    def resolved_dict(self) -> dict[str, Any]: ...


@_of(f"{_SRT}.managers.scheduler.Scheduler")
class Scheduler(Protocol):
    disaggregation_mode: Enum
    server_args: ServerArgs
    tree_cache: UnifiedRadixCache
    disagg_decode_prealloc_queue: DecodeQueue
    disagg_decode_transfer_queue: TransferQueue

    def _prefetch_kvcache(self, req: Req) -> object: ...

    def is_fully_idle(self, for_health_check: bool = False) -> bool: ...


@_of(f"{_SRT}.managers.scheduler_components.output_streamer.SchedulerOutputStreamer")
class OutputStreamer(Protocol):
    disaggregation_mode: Enum


@_of(f"{_SRT}.managers.io_struct.GetInternalStateReqOutput")
class InternalState(Protocol):
    internal_state: dict[str, object]


@_of(f"{_SRT}.managers.io_struct.SetInternalStateReq")
class SetInternalState(Protocol):
    server_args: dict[str, int | float]


# --- transfers between engines -----------------------------------------------------------------


@_of(f"{_SRT}.disaggregation.common.conn.CommonKVManager")
class KVManager(Protocol):
    transfer_infos: dict[int, dict[str, object]]
    """Of prefill engines only."""


@_of(f"{_SRT}.disaggregation.mooncake.conn.MooncakeKVSender")
class MooncakeKVSender(Protocol):
    supports_host_tensor_indices: bool
