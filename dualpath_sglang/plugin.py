"""The entry point that SGLang calls in every process of an engine, before it builds anything.

SGLang only logs a plugin or hook that fails. So the launcher calls `verify_installed` before the
server starts, and a hook on `Scheduler.init_disaggregation` calls it in the scheduler process:
an engine with half of the table does not serve.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from dualpath_sglang import hooks, metrics, sglang_api
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.cpu.shims import cpu_requested
from dualpath_sglang.hooks import Hook
from dualpath_sglang.report import REPORT_HOOKS
from dualpath_sglang.sglang_types import Scheduler
from dualpath_sglang.store_guard import STORE_HOOKS
from dualpath_sglang.transfer_rooms import ROOM_HOOKS

log = logging.getLogger("dualpath")


def install() -> None:
    """Register the hooks that this process needs. Raises StartupError for unusable targets."""
    config = EngineConfig.from_env(os.environ)
    table = hook_table(config)
    if not table:
        return
    if cpu_requested():
        from dualpath_sglang.cpu.hooks import prepare

        prepare()
    if problems := hooks.check_targets(table):
        raise StartupError("DualPath: this SGLang does not fit: " + "; ".join(problems))
    hooks.register(table)
    if config.second_path:
        from dualpath_sglang.secondpath.table import register_cache_backend

        register_cache_backend()
    log.info("DualPath: %d hooks registered (%s)", len(table), config.hooks)


def hook_table(config: EngineConfig) -> tuple[Hook, ...]:
    """Every hook of this process. CPU support, the store guard and what keeps transfer threads
    alive are part of every arm of a comparison; the rest is what DualPath adds."""
    table: tuple[Hook, ...] = ()
    if config.hooks == "off":
        return table
    if cpu_requested():
        from dualpath_sglang.cpu.hooks import CPU_HOOKS

        table += CPU_HOOKS
    if table or config.reports:
        table += (*STORE_HOOKS, *ROOM_HOOKS, VERIFY_HOOK)
    if config.reports:
        table += metrics.METRIC_HOOKS + REPORT_HOOKS
    if config.second_path:
        from dualpath_sglang.secondpath.table import SECOND_PATH_HOOKS

        table += SECOND_PATH_HOOKS
    return table


def verify_installed() -> None:
    """Raise StartupError that names every hook which is not live in this process."""
    hooks.verify(hook_table(EngineConfig.from_env(os.environ)))


def after_init_disaggregation(result: Any, scheduler: Scheduler, *args: Any, **kwargs: Any) -> Any:
    verify_installed()
    metrics.set_role(sglang_api.role_of(scheduler))
    if sglang_api.reads_store(scheduler):
        _compile_page_hash()
    return result


def _compile_page_hash() -> None:
    """Before the first request, and with an end that names the cause where it cannot be done."""
    try:
        sglang_api.compile_page_hash()
    except RuntimeError as error:
        raise StartupError(
            "DualPath: SGLang cannot compile the hash of its page keys, without which nothing is "
            "read from the store. It needs a C++ compiler, Python.h and openssl/sha.h (Debian: "
            f"apt-get install g++ python3-dev libssl-dev): {error.__cause__ or error}"
        ) from error


VERIFY_HOOK = Hook(
    "sglang.srt.managers.scheduler.Scheduler.init_disaggregation",
    "after",
    after_init_disaggregation,
    "a scheduler process with hooks missing, or without page keys, must not serve",
)
