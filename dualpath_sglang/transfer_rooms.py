"""A transfer whose room is gone is a concluded one, on prefill engines.

SGLang keeps one entry per room (one request's transfer) in tables of its KV manager. The scheduler
thread removes a room when its request ends, while transfer threads and the thread that hears from
decode engines look whether it is there and then, in a second step, look into it. Where the room
went in between, the KeyError ends that thread for good, and with it all transfers of its queue
(`disaggregation/mooncake/conn.py`, `transfer_worker` and `bootstrap_thread`).
`patches/` has the same as a change of SGLang.
"""

from __future__ import annotations

from typing import Any

from dualpath_sglang.hooks import Hook
from dualpath_sglang.sglang_types import KVManager

_MANAGER = "sglang.srt.disaggregation.common.conn.CommonKVManager"


class RoomTable(dict[int, dict[str, object]]):
    """Room -> decode rank -> where to send. What is asked of a room that is gone finds nothing, and
    what is told of it is forgotten."""

    def __missing__(self, room: int) -> dict[str, object]:
        return {}

    def pop(self, room: int, default: Any = None) -> Any:
        return super().pop(room, default)


def around_check_status(original: Any, manager: KVManager, bootstrap_room: int) -> Any:
    try:
        return original(manager, bootstrap_room)
    except KeyError:
        from sglang.srt.disaggregation.base import KVPoll

        return KVPoll.Failed


def after_manager_init(result: Any, manager: KVManager, *args: Any, **kwargs: Any) -> Any:
    """Before the manager's threads start, which happens in the constructors of its subclasses.
    Decode engines have no such table."""
    if hasattr(manager, "transfer_infos"):
        manager.transfer_infos = RoomTable(manager.transfer_infos)
    return result


ROOM_HOOKS: tuple[Hook, ...] = (
    Hook(
        f"{_MANAGER}.check_status",
        "around",
        around_check_status,
        "a room that is removed in between would end a transfer thread",
        ("bootstrap_room",),
    ),
    Hook(
        f"{_MANAGER}.__init__",
        "after",
        after_manager_init,
        "a room that is removed in between would end a transfer thread",
    ),
)
