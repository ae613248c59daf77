"""Every hook of the second path, and the cache class that belongs to them."""

from __future__ import annotations

from dualpath_sglang.hooks import Hook

CACHE_BACKEND = "dualpath"
"""Value of SGLang's `--radix-cache-backend`."""

SECOND_PATH_HOOKS: tuple[Hook, ...] = ()


def register_cache_backend() -> None:
    """Make `--radix-cache-backend dualpath` known to this process."""
    from sglang.srt.mem_cache.registry import (
        create_unified_radix_cache,
        register_radix_cache_backend,
    )
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    register_radix_cache_backend(
        CACHE_BACKEND,
        lambda ctx: create_unified_radix_cache(ctx, cache_class=UnifiedRadixCache),
    )
