"""What the hooks of the table do. Bodies are guarded: where one fails, upstream goes on alone.

`current` finds the running `SecondPath`; before it is started every hook is upstream's behaviour.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, cast

import torch

from dualpath_sglang import sglang_api
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.engine_info import INFO_KEY
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.hooks import guarded
from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.checks import advice, unsupported
from dualpath_sglang.secondpath.engine import SecondPath
from dualpath_sglang.secondpath.faults import forget_deferred
from dualpath_sglang.secondpath.info import engine_info
from dualpath_sglang.sglang_types import (
    DecodeQueue,
    DecodeRequest,
    HostKVCache,
    InternalState,
    Req,
    Scheduler,
)

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache

log = logging.getLogger("dualpath")

RESTORE_RETRY_S = 20.0
"""How long a decode engine tries again to copy a pinned prefix to a full device."""


def current(cache: object) -> SecondPath | None:
    found = getattr(cache, "second_path", None)
    return found if isinstance(found, SecondPath) else None


def _result(result: Any, *args: Any, **kwargs: Any) -> Any:
    return result


def _none(*args: Any, **kwargs: Any) -> None:
    return None


# --- start ------------------------------------------------------------------------------------


def after_init_disaggregation(result: Any, scheduler: Scheduler, *args: Any, **kwargs: Any) -> Any:
    """Raises StartupError, which ends the scheduler process: it must not serve half of this."""
    role = sglang_api.role_of(scheduler)
    if role in ("prefill", "decode") and current(scheduler.tree_cache) is None:
        problems = unsupported(sglang_api.settings_of(scheduler), scheduler.tree_cache)
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise StartupError(f"DualPath: {len(problems)} unsupported settings:\n{lines}")
        cache = cast("DualPathRadixCache", scheduler.tree_cache)
        path = SecondPath(scheduler, cache, role, EngineConfig.from_env(os.environ))
        sglang_pool.divert_prefetches(cache, path.take, path.holds)
        if role == "decode":
            forget_deferred(scheduler, path.faults)
        if warning := advice(*sglang_pool.pool_tokens(scheduler.tree_cache)):
            log.warning("DualPath: %s", warning)
        log.info("DualPath: second path of a %s engine, %s", role, path.describe())
    return result


@guarded("the engine's info", _result)
def after_get_internal_state(
    result: InternalState, scheduler: Scheduler, *args: Any, **kwargs: Any
) -> Any:
    path = current(scheduler.tree_cache)
    if path is not None:
        result.internal_state[INFO_KEY] = engine_info(path).to_tree()
    return result


# --- a request arrives ------------------------------------------------------------------------


def around_add_request(
    original: Any, scheduler: Scheduler, req: Req, is_retracted: bool = False, **kwargs: Any
) -> Any:
    entry = None if is_retracted else _follow(scheduler, req)
    result = original(scheduler, req, is_retracted, **kwargs)
    if entry is not None:
        _stage(scheduler, req, entry)
    return result


@guarded("reading a plan", _none)
def _follow(scheduler: Scheduler, req: Req) -> Any:
    path = current(scheduler.tree_cache)
    return path.follow(req) if path is not None else None


@guarded("staging a request", _none)
def _stage(scheduler: Scheduler, req: Req, entry: Any) -> None:
    path = current(scheduler.tree_cache)
    if path is None or path.staging is None:
        return
    waiting, _ = adapter.decode_queues(scheduler)
    if any(decode_req.req is req for decode_req in waiting):
        path.stage(entry)


def around_prefetch(
    original: Any, scheduler: Scheduler, req: Req, storage_hit_end: int | None = None, **kwargs: Any
) -> Any:
    """A plan says how much is in the store: upstream then does not ask the store again."""
    end = _planned_end(scheduler, req)
    given = storage_hit_end if end is None else end
    result = original(scheduler, req, given, **kwargs)
    if end is not None:
        _after_prefetch(scheduler, req)
    return result


@guarded("a planned prefetch", _none)
def _planned_end(scheduler: Scheduler, req: Req) -> int | None:
    path = current(scheduler.tree_cache)
    entry = path.requests.get(adapter.handle_of(req)) if path is not None else None
    if path is None or entry is None or entry.plan is None or entry.settled:
        return None
    return entry.plan.n * path.pool.page_size


@guarded("a planned prefetch", _none)
def _after_prefetch(scheduler: Scheduler, req: Req) -> None:
    path = current(scheduler.tree_cache)
    entry = path.requests.get(adapter.handle_of(req)) if path is not None else None
    if path is not None and path.client is not None and entry is not None:
        path.after_prefetch(entry)


# --- decode engine ----------------------------------------------------------------------------


@guarded("holding requests that are staged", _result)
def after_handshake(result: Any, queue: DecodeQueue, *args: Any, **kwargs: Any) -> Any:
    path = current(queue.tree_cache)
    if path is not None and path.staging is not None and len(path.staging):
        for decode_req in queue.queue:
            if path.staging.holds(adapter.handle_of(decode_req.req)):
                adapter.keep_waiting(decode_req)
    return result


def around_try_load_back(
    original: Any, queue: DecodeQueue, decode_req: DecodeRequest, **kwargs: Any
) -> Any:
    result = original(queue, decode_req, **kwargs)
    return _try_again(result, queue, decode_req)


@guarded("restoring a pinned prefix", _result)
def _try_again(result: Any, queue: DecodeQueue, decode_req: DecodeRequest) -> Any:
    """While the pages are pinned a failed restore means a full device: that passes."""
    path = current(queue.tree_cache)
    if path is None or path.staging is None or not adapter.restore_failed(decode_req):
        return result
    if not path.staging.may_retry_restore(
        adapter.handle_of(decode_req.req), time.monotonic(), RESTORE_RETRY_S
    ):
        return result
    adapter.restore_again(decode_req)
    return False


# --- memory and idleness ----------------------------------------------------------------------


def around_host_free(original: Any, pool: HostKVCache, indices: torch.Tensor, **kwargs: Any) -> Any:
    """Pages that a transfer still touches are freed when it has ended."""
    return original(pool, _not_held(pool, indices), **kwargs)


@guarded("keeping pages in transfer", lambda pool, indices: indices)
def _not_held(pool: HostKVCache, indices: torch.Tensor) -> torch.Tensor:
    holds = sglang_pool.holds_of(pool)
    if holds is None or holds.held == 0:
        return indices
    size = int(pool.page_size)
    pages = sglang_pool.pages_of(indices, size)
    kept = holds.retain(pages)
    return sglang_pool.slots_of([p for p in pages if p not in kept], size) if kept else indices


@guarded("idleness", _result)
def after_is_fully_idle(
    result: Any, scheduler: Scheduler, for_health_check: bool = False, *args: Any, **kwargs: Any
) -> Any:
    path = current(scheduler.tree_cache)
    if result and not for_health_check and path is not None and path.busy():
        return False
    return result
