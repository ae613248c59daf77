"""What an engine says of itself, so that the router can plan for it.

The plugin adds `EngineInfo.to_tree()` under `INFO_KEY` to the dictionary that
`Scheduler.get_internal_state` returns (a hook after it). SGLang sends that dictionary to HTTP:

    GET /server_info  ->  {"internal_states": [{"dualpath": {...}, ...}], ...}

one entry per data-parallel rank; the first that has the key counts. Without the plugin the key is
absent and the router makes no plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.kinds import Count, Positive
from dualpath_sglang.contract.pages import KeyLayout

INFO_KEY = "dualpath"
VERSION = 1


class EngineInfo(Struct, frozen=True, forbid_unknown_fields=True, tag_field="v", tag=VERSION):
    """One engine process group, as it is since its start.

    role: prefill or decode. sglang: its version.
    page_size: tokens per KV page. kv_bytes_per_token: K and V, all layers, all ranks.
    fingerprint: equal on engines that may share pages (model, dtype, layout, page size, keys).
    boot_nonce: new at every start. exports: `host:port` of each rank's export server, rank 0
    first (empty: it exports nothing). hooks: targets of the live hooks.
    key_layout: names of its objects in the store.
    """

    role: Annotated[str, Meta(pattern=r"^(prefill|decode)\Z")]
    sglang: str
    page_size: Positive
    kv_bytes_per_token: Count
    fingerprint: str
    boot_nonce: str
    exports: tuple[str, ...]
    hooks: tuple[str, ...]
    key_layout: KeyLayout

    def to_tree(self) -> dict[str, Any]:
        """JSON and msgpack values only."""
        tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return tree


def from_tree(tree: object) -> EngineInfo:
    """Strict: a missing, unknown or mistyped field raises EngineFailure that names it."""
    if isinstance(tree, Mapping) and tree.get("v") != VERSION:
        raise EngineFailure(f"engine info has version {tree.get('v')!r}, this router: {VERSION}")
    try:
        return msgspec.convert(tree, EngineInfo)
    except msgspec.ValidationError as error:
        raise EngineFailure(f"engine info: {error}") from error


def from_server_info(server_info: Mapping[str, Any]) -> EngineInfo | None:
    """The info in an engine's /server_info; None without the plugin. Raises EngineFailure."""
    states = server_info.get("internal_states")
    for state in states if isinstance(states, list) else ():
        if isinstance(state, Mapping) and INFO_KEY in state:
            return from_tree(state[INFO_KEY])
    return None
