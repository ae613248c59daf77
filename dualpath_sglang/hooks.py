"""The table type of everything this plugin changes inside SGLang, and the proof that it took.

SGLang logs a hook that cannot be applied and serves on without it. `verify` looks at each target
itself and names every one that is not live, so that an engine is never half-installed.
"""

from __future__ import annotations

import functools
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from dualpath_sglang.contract.errors import StartupError

log = logging.getLogger("dualpath")

Kind = Literal["after", "around", "replace"]
MARK = "__dualpath_hook__"


@dataclass(frozen=True)
class Hook:
    """One change. `target` is a dotted path; `parameters` are names the handler relies on.

    handler: after: `(result, *args, **kw)`; around: `(original, *args, **kw)`; replace: as target.
    """

    target: str
    kind: Kind
    handler: Callable[..., Any]
    why: str
    parameters: tuple[str, ...] = ()


def check_targets(hooks: Iterable[Hook]) -> list[str]:
    """What is wrong with the targets in the installed SGLang, a sentence each; nothing is changed.

    A target must exist and have the parameters its handler relies on.
    """
    problems = []
    for hook in hooks:
        try:
            found = _resolve(hook.target)
        except (ImportError, AttributeError, ValueError) as error:
            problems.append(f"{hook.target} does not exist ({error})")
            continue
        names = tuple(inspect.signature(found).parameters)
        missing = [name for name in hook.parameters if name not in names]
        if missing:
            problems.append(f"{hook.target} has no parameter {', '.join(missing)} (has {names})")
    return problems


def register(hooks: Iterable[Hook]) -> None:
    """Hand all hooks to SGLang, which applies them after the plugin's entry point has returned."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        HookRegistry.register(hook.target, _marked(hook), HookType(hook.kind))


def verify(hooks: Iterable[Hook]) -> None:
    """Raise StartupError that lists every hook which is not live in this process."""
    dead = [hook for hook in hooks if not is_live(hook)]
    if dead:
        lines = "\n".join(f"  {hook.target} ({hook.kind}): {hook.why}" for hook in dead)
        raise StartupError(
            f"DualPath: {len(dead)} hooks are not live, so this engine will not serve; the log "
            f"above says why SGLang could not apply them:\n{lines}"
        )


def is_live(hook: Hook) -> bool:
    """Is the handler somewhere in the chain of wrappers that the target is now?"""
    try:
        found: Any = _resolve(hook.target)
    except (ImportError, AttributeError, ValueError):
        return False
    while found is not None:
        if hook.handler in getattr(found, MARK, ()):
            return True
        if any(hook.handler in getattr(c, MARK, ()) for c in _closure(found)):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def guarded(name: str, fallback: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a hook body: an exception is logged once and `fallback` answers instead.

    An exception that leaves a hook would end SGLang's scheduler process.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        failed: set[str] = set()

        @functools.wraps(body)
        def safe(*args: Any, **kwargs: Any) -> Any:
            try:
                return body(*args, **kwargs)
            except Exception as error:
                if (text := repr(error)) not in failed:
                    failed.add(text)
                    log.exception("DualPath: %s failed; going on without it", name)
                return fallback(*args, **kwargs)

        return safe

    return decorate


def _marked(hook: Hook) -> Callable[..., Any]:
    @functools.wraps(hook.handler)
    def handler(*args: Any, **kwargs: Any) -> Any:
        return hook.handler(*args, **kwargs)

    # SGLang reads nothing from the handler; the mark is how `is_live` knows ours again.
    setattr(handler, MARK, (hook.handler,))
    return handler


def _closure(function: Any) -> list[Any]:
    cells = getattr(function, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if _filled(cell)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- raises ValueError when empty
    except ValueError:
        return False
    return True


def _resolve(target: str) -> Any:
    return pkgutil.resolve_name(target)
