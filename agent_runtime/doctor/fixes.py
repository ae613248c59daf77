"""From what failed to what is most likely to be done about it. Pure."""

from __future__ import annotations

from typing import Literal

Way = Literal["write", "store", "peer"]
"""Of the page: doctor -> store, store -> engine, D -> P."""

_ANY = {
    "door": "is the engine busy, stopped, or started with an API key? its log says more",
    "busy": "another doctor runs, or an earlier transfer of this engine still hangs: try again "
    "in a minute",
    "engine": "restart the engine; its host pool is smaller than what it holds",
    "deadline": "something on the way neither answers nor refuses: look for a firewall that drops "
    "packets, a hung storage node, or a saturated NIC",
}
_WRITE = {
    "mount": "is mooncake_master up and reachable from here? status.json names its address",
    "write": "is the storage node up, and has its segment room (store.segment_bytes)? start it "
    "again where it has died: the master gives out its memory until it notices",
    "find": "the master has lost the object at once: its memory is under eviction pressure, or "
    "two masters answer at one address",
    "read": "the storage node's data port is not reachable from here, or its memory is bad",
    "content": "the store gave other bytes than were written: do not serve from it",
    "admin": "the router asks this port what is stored: is it the master's metrics port "
    "(router.store_admin_url, store.metrics_port)?",
}
_STORE = {
    "absent": "the engine's client asks another master or tenant than the one above "
    "(MOONCAKE_MASTER), or spells its keys in another way",
    "store": "the engine cannot reach the storage node's data port: firewall, storage NIC "
    "(store_host), or another protocol than the node's (MOONCAKE_PROTOCOL, MC_FORCE_TCP)",
    "content": "the bytes changed between the storage node and the engine's memory: do not serve",
}
_PEER = {
    "connect": "is D's export server reachable from P (DUALPATH_ENGINE_EXPORT_HOST, "
    "DUALPATH_ENGINE_EXPORT_PORT), and do both serve the same model, dtype, layout and page size?",
    "transfer": "P reaches D's export port but not its transfer engine: open all ports between "
    "them, or give both the same DUALPATH_ENGINE_PEER_PROTOCOL and _PEER_DEVICE",
    "content": "the bytes changed between D's memory and P's: do not serve; "
    "DUALPATH_ENGINE_VERIFY_PAGES=1 rejects such pages",
}
_WAYS: dict[Way, dict[str, str]] = {"write": _WRITE, "store": _STORE, "peer": _PEER}


def likely_fix(way: Way, step: str) -> str:
    """One sentence; for a step that is not listed, where to look."""
    return _WAYS[way].get(step) or _ANY.get(step) or "the engine's log says more"
