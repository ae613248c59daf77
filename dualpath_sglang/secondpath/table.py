"""Every hook of the second path, and the cache class that belongs to them."""

from __future__ import annotations

from dualpath_sglang.hooks import Hook
from dualpath_sglang.secondpath import handlers, probe

CACHE_BACKEND = "dualpath"
"""Value of SGLang's `--radix-cache-backend`."""

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_PREALLOC = "sglang.srt.disaggregation.decode.DecodePreallocQueue"
_TRANSFER = "sglang.srt.disaggregation.decode.DecodeTransferQueue"

SECOND_PATH_HOOKS: tuple[Hook, ...] = (
    Hook(
        f"{_SCHEDULER}.init_disaggregation",
        "after",
        handlers.after_init_disaggregation,
        "settings are checked, the second path starts",
    ),
    Hook(
        f"{_SCHEDULER}.get_internal_state",
        "after",
        handlers.after_get_internal_state,
        "the router learns what to plan with",
    ),
    Hook(
        f"{_SCHEDULER}.set_internal_state",
        "around",
        probe.around_set_internal_state,
        "orders of the doctor arrive here",
        ("recv_req",),
    ),
    Hook(
        f"{_SCHEDULER}.get_internal_state",
        "after",
        probe.after_get_internal_state,
        "results for the doctor leave here",
    ),
    Hook(
        f"{_SCHEDULER}._add_request_to_queue",
        "around",
        handlers.around_add_request,
        "plans are read, D stages at arrival",
        ("req", "is_retracted"),
    ),
    Hook(
        f"{_SCHEDULER}._prefetch_kvcache",
        "around",
        handlers.around_prefetch,
        "P loads what the plan says, without asking the store",
        ("req", "storage_hit_end"),
    ),
    Hook(
        f"{_SCHEDULER}.is_fully_idle",
        "after",
        handlers.after_is_fully_idle,
        "no flush while pages are in transfer",
        ("for_health_check",),
    ),
    Hook(
        f"{_PREALLOC}._update_handshake_waiters",
        "after",
        handlers.after_handshake,
        "D announces what it has, so it waits until it has it",
    ),
    Hook(
        f"{_TRANSFER}._try_hicache_queue_load_back",
        "around",
        handlers.around_try_load_back,
        "a full device is waited for while the prefix is pinned",
        ("dr",),
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.base.HostKVCache.free",
        "around",
        handlers.around_host_free,
        "pages in transfer are not given out again",
        ("indices",),
    ),
)


def register_cache_backend() -> None:
    """Make `--radix-cache-backend dualpath` known to this process."""
    from sglang.srt.mem_cache.registry import (
        create_unified_radix_cache,
        register_radix_cache_backend,
        registered_radix_cache_backends,
    )

    if CACHE_BACKEND in registered_radix_cache_backends():
        return

    def build(context: object) -> object:
        from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

        return create_unified_radix_cache(context, cache_class=DualPathRadixCache)

    register_radix_cache_backend(CACHE_BACKEND, build)
