"""The installed SGLang has every hook target, class, attribute, method, parameter, import and
setting that this project uses; and what is declared of SGLang is all that is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fit import GROUPS, every_hook, misfits
from our_use import OWN, PACKAGE, WITHOUT_SGLANG, named, names_asked_for, sources, untyped_reads
from sglang_source import Source

from dualpath_sglang import hooks, sglang_types
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import Hook

install_shims()

NOT_SGLANG = {
    "dualpath_sglang/hooks.py": "cells of a function",
    "dualpath_sglang/metrics.py": "prometheus_client",
    "dualpath_sglang/probe_object.py": "Mooncake",
    "dualpath_sglang/secondpath/transport.py": "Mooncake",
    "dualpath_sglang/cpu/shims.py": "torch",
    "dualpath_sglang/cpu/streams.py": "torch",
}
"""Files that read attributes of something untyped, and what that is."""


def installed() -> Path:
    import sglang

    return Path(sglang.__file__).parents[1]


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    return misfits(installed())


@pytest.mark.parametrize("group", GROUPS)
def test_the_installed_sglang_fits(found: dict[str, list[str]], group: str) -> None:
    assert found[group] == []


def test_importing_finds_the_same_as_reading_the_source() -> None:
    assert hooks.check_targets(every_hook()) == []


def test_every_hook_says_why() -> None:
    assert all(len(hook.why) > 10 for hook in every_hook())


# --- what is declared is all that is used ---------------------------------------------------------


def looked_at() -> list[Path]:
    return [
        file
        for file in sources()
        if file.is_relative_to(PACKAGE)
        and not named(file).removeprefix("dualpath_sglang/").startswith(WITHOUT_SGLANG)
        and named(file) not in NOT_SGLANG
    ]


def test_nothing_is_read_of_what_mypy_does_not_know() -> None:
    assert [read for file in looked_at() for read in untyped_reads(file)] == []


def declared() -> set[str]:
    return {
        name
        for kind in sglang_types.SOURCES
        for name in (*vars(kind), *vars(kind).get("__annotations__", {}))
        if not name.startswith("__")
    }


def test_what_is_asked_for_by_a_text_is_declared() -> None:
    asked = [(named(f), line, name) for f in looked_at() for line, name in names_asked_for(f)]
    assert [a for a in asked if a[2] not in declared() | OWN] == []


def test_the_declarations_hold_nothing_untyped() -> None:
    """An attribute of type `Any` would let everything behind it pass."""
    tree = ast.parse(Path(sglang_types.__file__).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == len(sglang_types.SOURCES)
    attributes = [n for c in classes for n in c.body if isinstance(n, ast.AnnAssign)]
    untyped = [a.lineno for a in attributes if ast.unparse(a.annotation) == "Any"]
    assert untyped == []


def test_everything_declared_is_used() -> None:
    used: set[str] = set()
    for file in sources():
        if file.name != "sglang_types.py":
            used |= set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
    of_protocols = {"_is_protocol", "_abc_impl"}
    assert declared() - used - of_protocols == set()


# --- the checks themselves ------------------------------------------------------------------------


def test_a_wrong_target_is_found() -> None:
    source = Source(installed())
    scheduler = "sglang.srt.managers.scheduler.Scheduler"
    assert source.parameters(f"{scheduler}.no_such_method") is None
    assert source.parameters("sglang.srt.no_such_module.f") is None
    assert source.members(f"{scheduler}.is_fully_idle") is None
    assert "for_health_check" in (source.parameters(f"{scheduler}.is_fully_idle") or ())
    members = source.members(scheduler) or frozenset()
    assert {"tree_cache", "process_decode_queue", "waiting_queue"} <= members
    assert "no_such_attribute" not in members
    assert hooks.check_targets([Hook(f"{scheduler}.gone", "after", print, "test")])


def test_an_untyped_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("our_use.ROOT", tmp_path)
    file = tmp_path / "example.py"
    file.write_text(
        """
def give() -> Any: ...
def f(cache: Any, req: Req, original: Any):
    original(req.rid)
    cache.page_size
    give().size
    pool = give()
    return pool.free
class Part:
    kept: Any
    def __init__(self, cache: Any, req: Req) -> None:
        self.cache, self.req = cache, req
    def g(self):
        return self.cache.evict, self.req.rid, self.kept.x
""",
        encoding="utf-8",
    )
    names = [read.rpartition(".")[2] for read in untyped_reads(file)]
    assert names == ["page_size", "size", "free", "evict", "x"]


@pytest.mark.full
def test_an_older_release_is_seen_not_to_fit(tmp_path: Path) -> None:
    """`make check-sglang` does the same, and imports what it can besides."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    done = subprocess.run([*command, "sglang==0.5.21"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("sglang 0.5.21 cannot be downloaded here")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    found = {group: len(texts) for group, texts in misfits(tmp_path).items() if texts}
    assert found == {"classes": 3, "settings": 1, "statements": 8}
