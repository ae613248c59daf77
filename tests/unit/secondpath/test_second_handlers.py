"""Hook bodies on doubles: upstream is called exactly once, whatever happens in ours."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualpath_sglang.contract.plan import Plan
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.secondpath import handlers
from dualpath_sglang.secondpath.engine import SecondPath
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.pool import HostPool
from dualpath_sglang.secondpath.requests import Requests
from dualpath_sglang.secondpath.table import SECOND_PATH_HOOKS

install_shims()


class Original:
    """Counts its calls."""

    def __init__(self, result: Any = "upstream") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return self.result


def path(**parts: Any) -> SecondPath:
    """A second path of which only `parts` exist: anything else that is asked for raises."""
    made = SecondPath.__new__(SecondPath)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def cache(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(second_path=path(**parts))


def broken_scheduler() -> SimpleNamespace:
    """Every use of its second path raises."""
    return SimpleNamespace(tree_cache=cache())


REQ = SimpleNamespace(cache_request_handle="h")


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        (handlers.around_add_request, (broken_scheduler(), REQ)),
        (handlers.around_prefetch, (broken_scheduler(), REQ)),
        (
            handlers.around_try_load_back,
            (SimpleNamespace(tree_cache=cache()), SimpleNamespace(hicache_restore_status=None)),
        ),
        (handlers.around_host_free, (SimpleNamespace(dualpath_holds=SimpleNamespace()), "pages")),
    ],
)
def test_a_body_that_fails_leaves_upstream_as_it_is(hook: Any, arguments: Any) -> None:
    original = Original()
    assert hook(original, *arguments) == "upstream"
    assert len(original.calls) == 1
    assert original.calls[0][: len(arguments)] == arguments


@pytest.mark.parametrize(
    "hook",
    [handlers.after_handshake, handlers.after_is_fully_idle, handlers.after_get_internal_state],
)
def test_an_after_body_that_fails_keeps_the_result(hook: Any) -> None:
    broken = SimpleNamespace(tree_cache=cache())
    assert hook("upstream", broken) == "upstream"


def test_an_engine_that_lends_pages_is_not_idle() -> None:
    busy = SimpleNamespace(tree_cache=cache(staging=None, loads=[1]))
    assert handlers.after_is_fully_idle(True, busy) is False
    assert handlers.after_is_fully_idle(True, busy, for_health_check=True) is True
    assert handlers.after_is_fully_idle(False, busy) is False


def test_held_pages_are_left_out_of_a_free() -> None:
    holds = PageHolds()
    holds.hold([2])
    pool = SimpleNamespace(dualpath_holds=holds, page_size=4)
    original = Original(8)
    handlers.around_host_free(original, pool, torch.arange(4, 16))
    assert original.calls[0][1].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert holds.quarantined == {2}


class Status(Enum):
    FAILED = "failed"


@pytest.mark.parametrize(("pinned", "after"), [(True, "pending"), (False, "failed")])
def test_a_failed_restore_is_tried_again_while_pinned(pinned: bool, after: str) -> None:
    staging = SimpleNamespace(may_retry_restore=lambda *_: pinned)
    queue = SimpleNamespace(tree_cache=cache(staging=staging))
    request = SimpleNamespace(
        hicache_restore_status=Status.FAILED, req=SimpleNamespace(cache_request_handle="h")
    )
    assert handlers.around_try_load_back(Original(False), queue, request) is False
    assert request.hicache_restore_status.value == after


def test_staged_requests_are_not_preallocated() -> None:
    class Staging:
        def __len__(self) -> int:
            return 1

        def holds(self, handle: str) -> bool:
            return handle == "staged"

    def request(handle: str) -> SimpleNamespace:
        req = SimpleNamespace(cache_request_handle=handle)
        return SimpleNamespace(req=req, waiting_for_input=True)

    queue = SimpleNamespace(
        tree_cache=cache(staging=Staging()), queue=[request("staged"), request("other")]
    )
    handlers.after_handshake(None, queue)
    assert [d.waiting_for_input for d in queue.queue] == [False, True]


def test_every_hook_is_in_the_table_once() -> None:
    pairs = [(hook.target, hook.handler) for hook in SECOND_PATH_HOOKS]
    assert len(set(pairs)) == len(pairs)


# --- room on a prefill engine -----------------------------------------------------------------


class Room:
    """A prefill engine with a pool of 64 pages of 16 tokens."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.ongoing: set[str] = set()
        self.occupied = 0
        controller = SimpleNamespace(prefetch_tokens_occupied=0)
        self.controller = controller
        self.path = path(
            client=object(),
            requests=self.requests,
            pins=SimpleNamespace(pages=0),
            pool=HostPool(0, 64, 64 * 64, 64, 16),
            cache=SimpleNamespace(
                cache_controller=controller,
                has_ongoing_prefetch=lambda handle: handle in self.ongoing,
            ),
        )

    def follow(self, handle: str) -> None:
        plan = Plan(handle, 10, 5, 16, ("d:1",), 1000, "print")
        self.requests.follow(None, handle, 1, plan, 0.0)


def test_loads_and_kept_prefixes_share_half_of_the_pool() -> None:
    room = Room()
    room.follow("a")
    assert room.path.may_load("a", 1000)
    room.controller.prefetch_tokens_occupied = 256
    assert room.path.may_load("a", 256)
    assert not room.path.may_load("a", 257)
    room.path.pins.pages = 10  # type: ignore[misc]
    assert not room.path.may_load("a", 256)
    assert room.path.may_load("a", 96)


def test_a_later_request_does_not_overtake_one_that_waits_for_room() -> None:
    room = Room()
    room.follow("first")
    room.follow("second")
    assert not room.path.may_load("second", 16)
    room.ongoing.add("first")
    assert room.path.may_load("second", 16)
    assert room.path.may_load("without a plan", 10**6)
