"""Hooks are proven live, and a body that fails does not take SGLang with it."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from dualpath_sglang import hooks
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook, guarded

install_shims()


class Engine:
    def step(self, tokens: int, room: int = 0) -> int:
        return tokens + room

    def stop(self) -> str:
        return "stopped"


@pytest.fixture
def module() -> Iterator[str]:
    """A toy module with a fresh class `Engine`, and SGLang's registry emptied afterwards."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    name = "toy_engine_module"
    toy = types.ModuleType(name)
    toy.Engine = type("Engine", (), dict(vars(Engine)))  # type: ignore[attr-defined]
    sys.modules[name] = toy
    yield name
    del sys.modules[name]
    HookRegistry.reset()


def apply(*table: Hook) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    hooks.register(table)
    HookRegistry.apply_hooks()


def doubled(original: Any, self: Any, tokens: int, room: int = 0) -> int:
    return 2 * int(original(self, tokens, room))


def louder(result: str, self: Any) -> str:
    return result.upper()


def test_hooks_are_live_after_sglang_applied_them(module: str) -> None:
    table = (
        Hook(f"{module}.Engine.step", "around", doubled, "test", ("tokens", "room")),
        Hook(f"{module}.Engine.stop", "after", louder, "test"),
    )
    assert not any(hooks.is_live(hook) for hook in table)
    apply(*table)
    hooks.verify(table)
    engine = sys.modules[module].Engine()
    assert (engine.step(2, room=1), engine.stop()) == (6, "STOPPED")


def test_two_hooks_on_one_target_are_each_seen(module: str) -> None:
    first = Hook(f"{module}.Engine.step", "around", doubled, "test")
    second = Hook(f"{module}.Engine.step", "after", lambda result, *a, **k: result + 1, "test")
    apply(first, second)
    hooks.verify((first, second))
    other = Hook(f"{module}.Engine.step", "after", louder, "never registered")
    assert not hooks.is_live(other)


def test_every_dead_hook_is_named(module: str) -> None:
    gone = Hook(f"{module}.Engine.gone", "after", louder, "why this one")
    other = Hook("no_such_module.thing", "around", doubled, "why that one")
    apply(gone, other)  # SGLang only logs
    with pytest.raises(StartupError) as caught:
        hooks.verify((gone, other))
    for part in ("2 hooks", "Engine.gone", "why this one", "no_such_module.thing", "why that one"):
        assert part in caught.value.message


def test_targets_are_checked_without_changing_anything(module: str) -> None:
    table = (
        Hook(f"{module}.Engine.step", "around", doubled, "test", ("tokens", "wait")),
        Hook(f"{module}.Engine.gone", "after", louder, "test"),
    )
    problems = hooks.check_targets(table)
    assert "has no parameter wait" in problems[0]
    assert "Engine.gone does not exist" in problems[1]
    assert sys.modules[module].Engine().step(2) == 2


def test_a_failing_body_falls_back_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @guarded("the thing", lambda x: -x)
    def body(x: int) -> int:
        raise RuntimeError("broken")

    with caplog.at_level(logging.ERROR, logger="dualpath"):
        assert [body(1), body(2)] == [-1, -2]
    assert [r.message for r in caplog.records] == [
        "DualPath: the thing failed; going on without it"
    ]


@pytest.mark.parametrize("store", ["mooncake", None])
def test_an_engine_that_cannot_compile_page_keys_does_not_serve(
    store: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.mem_cache import utils

    from dualpath_sglang import plugin

    def fail(*_: Any) -> str:
        raise RuntimeError("Failed to load") from OSError("no c++ here")

    monkeypatch.setattr(utils, "get_hash_str", fail)
    monkeypatch.setenv("DUALPATH_ENGINE_HOOKS", "off")
    scheduler = types.SimpleNamespace(
        disaggregation_mode=types.SimpleNamespace(value="prefill"),
        server_args=types.SimpleNamespace(hicache_storage_backend=store),
    )
    if store is None:
        assert plugin.after_init_disaggregation("as it was", scheduler) == "as it was"
        return
    with pytest.raises(StartupError, match=r"apt-get install g\+\+ .*libssl-dev\): no c\+\+ here"):
        plugin.after_init_disaggregation(None, scheduler)
