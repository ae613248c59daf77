"""A prefill engine's loaded prefixes, kept in the host pool until their request is admitted.

Upstream leaves them evictable between the end of a load and the request's first batch, which may
have to wait for its decode engine. Then others' loads push them out and they are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_sglang.secondpath import adapter
from dualpath_sglang.sglang_types import Handle, LockReceipt, Node, Req, UnifiedRadixCache


@dataclass(frozen=True)
class _Pin:
    node: Node
    receipt: LockReceipt
    pages: int


class AdmissionPins:
    """By cache handle. Scheduler thread only."""

    def __init__(self, cache: UnifiedRadixCache) -> None:
        self._cache = cache
        self._pins: dict[Handle, _Pin] = {}

    def pin(self, handle: Handle, req: Req, end: int, page_size: int) -> bool:
        """Keep the host pages within the first `end` tokens of a prompt. False: there are none, or
        they are kept already."""
        if handle in self._pins:
            return False
        node = adapter.match(self._cache, req, end).host_node
        if node is None or adapter.is_root(self._cache, node):
            return False
        self._pins[handle] = _Pin(node, adapter.pin(self._cache, node), end // page_size)
        return True

    def release(self, handle: Handle) -> None:
        """The request was admitted, or is gone."""
        pin = self._pins.pop(handle, None)
        if pin is not None:
            adapter.unpin(self._cache, pin.node, pin.receipt)

    def clear(self) -> None:
        for handle in list(self._pins):
            self.release(handle)

    @property
    def pages(self) -> int:
        return sum(pin.pages for pin in self._pins.values())
