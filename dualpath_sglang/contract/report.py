"""What the plugin in one engine says of one request: rides in `meta_info` of the engine's answer.

`meta_info["dualpath"]` is a list whose first entry is the tree of one `TurnReport`; SGLang carries
it from the scheduler process to HTTP (`Req.customized_info`), so no port or query of ours is
needed. Without the plugin the key is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

META_KEY = "dualpath"
VERSION = 1


class TurnReport(Struct, frozen=True, tag_field="v", tag=VERSION):
    """Prompt tokens of one request on one engine, by where their KV came from. Units: tokens.

    device, host: already in this engine's memory. storage: read from the store by this engine for
    this request. peer: pulled from the other engine's memory. received: sent by the prefill
    engine after its forward (decode only). computed: by a forward pass here (prefill only).
    The six add up to the prompt.
    """

    role: str
    device: int = 0
    host: int = 0
    storage: int = 0
    peer: int = 0
    received: int = 0
    computed: int = 0
    store_bytes: int = 0
    peer_bytes: int = 0
    plan_id: str = ""
    split_pages: int = 0
    load_s: float = 0.0
    fallback: str = ""

    def to_tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree


def from_meta(meta: Mapping[str, Any]) -> TurnReport | None:
    """The report in an engine's `meta_info`; None when there is none that this version reads."""
    rows = meta.get(META_KEY)
    row = next((r for r in rows if isinstance(r, dict)), None) if isinstance(rows, list) else None
    if row is None or "v" not in row:
        return None
    try:
        return msgspec.convert(row, TurnReport)
    except msgspec.ValidationError:
        return None
