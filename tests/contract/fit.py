"""Does a SGLang fit this project? By its source alone: nothing of it is imported or run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from our_use import imports, overrides, paths_in_text, sources
from sglang_source import Source

from agent_runtime.config import EngineGroup, StackConfig, StoreConfig
from agent_runtime.stack.commands import EnginePorts, engine_flags
from dualpath_sglang import plugin, sglang_types
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.hooks import Hook
from dualpath_sglang.secondpath.checks import unsupported

NEW_METHODS = {"is_waiting_for_query", "commit_load", "_leave_out_peer"}
"""Of our classes that are derived from SGLang's: those that SGLang must not have."""
SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
GROUPS = ("hooks", "classes", "imports", "overrides", "settings", "statements")


def misfits(root: Path) -> dict[str, list[str]]:
    """What does not fit, a sentence each, by group. `root` holds the folder `sglang/`."""
    source = Source(root)
    found: dict[str, Iterable[str]] = {
        "hooks": _hooks(source, every_hook()),
        "classes": _classes(source),
        "imports": _imports(source),
        "overrides": _overrides(source),
        "settings": _settings(source),
        "statements": _statements(source),
    }
    return {group: sorted(set(found[group])) for group in GROUPS}


def counts() -> dict[str, int]:
    """How much is looked at, by group."""
    used = [sglang_types.SOURCES[kind] for kind in sglang_types.SOURCES]
    members = sum(len(_used(kind)) for kind in sglang_types.SOURCES)
    return {
        "hooks": len(every_hook()),
        "classes": len({path for paths in used for path in paths}),
        "attributes": members,
        "imports": len({(i.module, i.name) for file in sources() for i in imports(file)}),
        "overrides": len([o for file in sources() for o in overrides(file)]),
        "settings": len(_settings_asked_for()) + len(_flags()),
        "statements": len(STATEMENTS),
    }


def every_hook() -> tuple[Hook, ...]:
    """What the plugin registers in an engine that has all of it, on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        return plugin.hook_table(EngineConfig(hooks="all"))


def _hooks(source: Source, hooks: Iterable[Hook]) -> Iterator[str]:
    for hook in hooks:
        has = source.parameters(hook.target)
        if has is None:
            yield f"{hook.target} is gone"
        elif missing := sorted(set(hook.parameters) - has):
            yield f"{hook.target} lost the parameter {', '.join(missing)}"


def _classes(source: Source) -> Iterator[str]:
    for kind, paths in sglang_types.SOURCES.items():
        for path in paths:
            has = source.members(path)
            if has is None:
                yield f"{path} is gone"
                continue
            if path == SERVER_ARGS:
                has |= _fields(source)
            for name in sorted(_used(kind)):
                if name not in has:
                    yield f"{path} lost {name}"
                elif missing := _lost_parameters(source, f"{path}.{name}", kind, name):
                    yield f"{path}.{name} lost the parameter {', '.join(missing)}"


def _used(kind: type) -> set[str]:
    """Attributes and methods that a class of `sglang_types` declares, or inherits from another."""
    own = {n for n, value in vars(kind).items() if callable(value) and n in _methods(kind)}
    return own | {n for base in _bases(kind) for n in _annotations(base)}


def _bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base in sglang_types.SOURCES]


def _annotations(kind: type) -> Mapping[str, Any]:
    return vars(kind).get("__annotations__", {})


def _methods(kind: type) -> set[str]:
    return {
        name
        for base in _bases(kind)
        for name, value in vars(base).items()
        if getattr(value, "__module__", "") == sglang_types.__name__
        and getattr(value, "__qualname__", "").startswith(base.__name__ + ".")
    }


def _lost_parameters(source: Source, path: str, kind: type, name: str) -> list[str]:
    method = getattr(kind, name, None)
    if name not in _methods(kind) or method is None:
        return []
    wanted = set(method.__annotations__) - {"return", "args", "kwargs"}
    has = source.parameters(path)
    return sorted(wanted - has) if has is not None else []


def _imports(source: Source) -> Iterator[str]:
    for file in sources():
        for use in imports(file):
            path = f"{use.module}.{use.name}"
            if not source.has(use.module, use.name):
                yield f"{path} is gone ({use.file})"
                continue
            for name in sorted(use.attributes - (source.members(path) or use.attributes)):
                yield f"{path} lost {name} ({use.file})"
            for name in sorted(use.keywords - (source.parameters(path) or use.keywords)):
                yield f"{path} lost the parameter {name} ({use.file})"
        for path in paths_in_text(file):
            if path != "sglang.srt" and source.find(path) is None:
                yield f"{path} is gone ({file.name})"


def _overrides(source: Source) -> Iterator[str]:
    for file in sources():
        for one in overrides(file):
            has = source.parameters(f"{one.base}.{one.method}")
            if (has is None) != (one.method in NEW_METHODS):
                yield f"{one.base}.{one.method} {'is gone' if has is None else 'is new there'}"
            elif has is not None and (missing := sorted(one.parameters - has)):
                yield f"{one.base}.{one.method} lost the parameter {', '.join(missing)}"


_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
_PAGED = "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator"
_RESTORES = "sglang.srt.disaggregation.decode_hicache_mixin.DecodeHiCacheTransferMixin"
_CONTROLLER = "sglang.srt.managers.cache_controller.HiCacheController"
_HYBRID = "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController"
STATEMENTS = (
    (f"{_CACHE}._drain_storage_control_queues_impl", "cc.prefetch_buffer.put(operation)"),
    (f"{_CACHE}._drain_storage_control_queues_impl", "operation.host_indices = host_indices"),
    (f"{_CACHE}.prefetch_from_storage", "operation.storage_start = storage_start"),
    (f"{_CACHE}.check_prefetch_progress", "self._can_terminate_prefetch("),
    (f"{_CACHE}._handle_prefetch_result", "host_indices[:completed_tokens]"),
    (f"{_CACHE}._handle_prefetch_result", "self.prefetch_loaded_tokens_by_reqid[request]"),
    (
        "sglang.srt.disaggregation.decode.DecodePreallocQueue.pop_preallocated",
        "if not decode_req.waiting_for_input:\n                continue",
    ),
    # Faults of older releases that hooks of ours mended until upstream did.
    (f"{_PAGED}.alloc_extend", "alloc_extend_naive("),
    (f"{_PAGED}.alloc_decode", "alloc_decode_naive("),
    (f"{_RESTORES}._try_hicache_queue_load_back", "[pm.l1_prefix_len : pm.decode_prefix_len]"),
    (f"{_RESTORES}._process_hicache_local_restores", "consumer_index = counter.producer_index"),
    (f"{_CONTROLLER}.prefetch_thread_func", "except Exception:"),
    (f"{_CONTROLLER}._page_transfer", "except Exception:"),
    (f"{_HYBRID}.backup_thread_func", "self._page_backup_or_log(operation)"),
    ("sglang.srt.managers.scheduler.Scheduler.is_fully_idle", "has_pending_deferred_releases()"),
)
"""Statements that this project builds on."""


def _statements(source: Source) -> Iterator[str]:
    for path, statement in STATEMENTS:
        if statement not in source.text(path):
            yield f"{path} lost the statement {statement!r}"


# --- settings -------------------------------------------------------------------------------------


class _Asked(dict[str, Any]):
    """Settings of a prefill or decode engine that note what they are asked for."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role
        self.names: set[str] = set()

    def __missing__(self, name: str) -> Any:
        self.names.add(name)
        return self.role if name == "disaggregation_mode" else 1


def _settings_asked_for() -> set[str]:
    found: set[str] = set()
    for role in ("prefill", "decode"):
        asked = _Asked(role)
        unsupported(asked, None)
        found |= asked.names
    return found


def _flags() -> set[str]:
    """Flags that engines are started with."""
    found: set[str] = set()
    for enabled in (True, False):
        config = StackConfig(cpu=True, store=StoreConfig(enabled=enabled, device_name="device"))
        for role in ("prefill", "decode", "plain"):
            group = EngineGroup(role=role)  # type: ignore[arg-type]
            found |= set(engine_flags(config, group, EnginePorts(1, 2, 3)))
    return found


def _settings(source: Source) -> Iterator[str]:
    fields = _fields(source)
    for name in sorted(_settings_asked_for()):
        if name not in fields:
            yield f"there is no setting {name}"
    for flag in sorted(_flags()):
        if flag.replace("-", "_") not in fields:
            yield f"there is no flag --{flag}"


def _fields(source: Source) -> set[str]:
    """Of `ServerArgs`, which SGLang puts together from several files."""
    folder = source.folder("sglang.srt.arg_groups.fields")
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    found = {name for text in texts for name in re.findall(r"^    (\w+): A\[", text, re.MULTILINE)}
    return found | (source.members(SERVER_ARGS) or set())
