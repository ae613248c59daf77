"""What an engine with a second path says of itself (`contract.engine_info`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dualpath_sglang import sglang_api
from dualpath_sglang.contract.addresses import host_port
from dualpath_sglang.contract.engine_info import EngineInfo

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.engine import SecondPath


def engine_info(path: SecondPath) -> EngineInfo:
    exports = (host_port(path.host, path.server.port),) if path.server is not None else ()
    return EngineInfo(
        role=path.role,
        sglang=sglang_api.version(),
        page_size=path.pool.page_size,
        kv_bytes_per_token=path.pool.bytes_per_page // path.pool.page_size,
        fingerprint=path.fingerprint,
        boot_nonce=path.nonce,
        exports=exports,
        hooks=live_hooks(),
        key_layout=path.keys,
    )


def hook_facts() -> list[dict[str, Any]]:
    """Every hook that this process should have: target, kind, why, and whether it is live."""
    from dualpath_sglang import hooks
    from dualpath_sglang.contract.engine_config import EngineConfig
    from dualpath_sglang.plugin import hook_table

    return [
        {"target": h.target, "kind": h.kind, "why": h.why, "live": hooks.is_live(h)}
        for h in hook_table(EngineConfig.from_env(os.environ))
    ]


def live_hooks() -> tuple[str, ...]:
    """Targets of the hooks that are live in this process."""
    return tuple(sorted({fact["target"] for fact in hook_facts() if fact["live"]}))
