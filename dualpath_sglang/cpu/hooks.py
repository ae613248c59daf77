"""What CPU support changes inside SGLang. Installed on CPU engines only, in every arm."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from typing import Any, cast

import torch

from dualpath_sglang.cpu import host_copy, streams
from dualpath_sglang.hooks import Hook
from dualpath_sglang.sglang_types import MooncakeKVSender, Scheduler

WAIT_S = 0.001
"""Pause of a scheduler that has nothing to compute. With more schedulers than cores, upstream's
`sleep(0)` would take the time slices of those that have work."""
IDLE_S = 0.004
"""The same with no request at all: SGLang checks its pools' books on every round."""

HOST_POOL_MODULES = (
    "sglang.srt.mem_cache.pool_host.mha",
    "sglang.srt.mem_cache.pool_host.mla",
)


def prepare() -> None:
    """What is no hook: names that a CPU build of SGLang or torch lacks altogether."""
    streams.complete_cpu_streams()
    install_attention()
    for name in HOST_POOL_MODULES:
        module = importlib.import_module(name)
        for copy in (
            host_copy.transfer_kv_all_layer_direct_lf_pf,
            host_copy.transfer_kv_per_layer_direct_pf_lf,
        ):
            if not hasattr(module, copy.__name__):
                setattr(module, copy.__name__, copy)


def install_attention() -> None:
    """Make our attention SGLang's `torch_native`. Idempotent.

    Under its own name it would be sent down SGLang's Triton branches, which are chosen by backend
    name. MLA models attend to latents always (the absorbed form): upstream takes separate keys and
    values for a prompt without a prefix, which a backend that reads the KV pool cannot do.

    Raises:
        RuntimeError: this SGLang has no `torch_native` to replace.
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
    )
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    if "torch_native" not in ATTENTION_BACKENDS:
        raise RuntimeError("this SGLang registers no torch_native attention to replace")
    ATTENTION_BACKENDS["torch_native"] = _attention_backend
    AttentionBackendRegistry.register("torch_native", lambda layer, batch: AttnForwardMethod.MLA)


def _attention_backend(runner: Any) -> Any:
    # Imported late: SGLang is only being imported when `prepare` runs.
    from dualpath_sglang.cpu.attention_backend import PrefixAttnBackend

    return PrefixAttnBackend(runner)


def host_register(buffer: torch.Tensor, registration_granularity_bytes: int | None = None) -> None:
    """Pinning for DMA by a GPU that is not there."""


def rest(result: Any, scheduler: Scheduler, *args: Any, **kwargs: Any) -> Any:
    time.sleep(IDLE_S if scheduler.is_fully_idle() else WAIT_S)
    return result


def fork_children(result: Any, *args: Any, **kwargs: Any) -> Any:
    """Scheduler and detokenizer start as copies of a process that has imported everything.

    Safe here: nothing in the parent has used a thread pool of torch or opened a device by then;
    with CUDA it would not be, and SGLang's choice stays.
    """
    multiprocessing.set_start_method("fork", force=True)
    return result


def send_plain_indices(result: object, *args: Any, **kwargs: Any) -> Any:
    """A sender class that takes page indices before they have come off the device gets them after.

    Not in `prepare`: that class's module imports prometheus_client, which decides then whether it
    writes for several processes, and SGLang sets that up later.
    """
    if hasattr(result, "supports_host_tensor_indices"):
        cast("type[MooncakeKVSender]", result).supports_host_tensor_indices = False
    return result


CPU_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.pool_host.common._cuda_host_register",
        "replace",
        host_register,
        "there is no CUDA runtime to register host memory with",
        ("buffer", "registration_granularity_bytes"),
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.on_idle",
        "after",
        rest,
        "an engine that waits for a load must not burn a core",
    ),
    Hook(
        "sglang.srt.entrypoints.engine._set_envs_and_config",
        "after",
        fork_children,
        "spawned children would import SGLang and torch again, 12 s of CPU each",
    ),
    Hook(
        "sglang.srt.disaggregation.utils.get_kv_class",
        "after",
        send_plain_indices,
        "page indices of a transfer would go through pinned memory and a CUDA event",
        ("class_type",),
    ),
)
