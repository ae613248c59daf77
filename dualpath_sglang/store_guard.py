"""The store is shared: one engine's `/flush_cache` empties that engine, never the store.

Upstream's `MooncakeStore.clear` removes every object of every engine and model.
"""

from __future__ import annotations

import logging

from dualpath_sglang.hooks import Hook

log = logging.getLogger("dualpath")


def keep_store(self: object) -> None:
    log.info("flush: this engine's caches only; the shared store keeps its objects")


STORE_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.storage.mooncake_store.mooncake_store.MooncakeStore.clear",
        "replace",
        keep_store,
        "a flush of one engine must not delete the KV of all",
    ),
)
