"""Who may import whom. The imports of every file are walked, also those within functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("dualpath_sglang", "agent_runtime", "benchmarks")
HEAVY = {"torch", "sglang", "mooncake", "transformers", "tokenizers", "safetensors"}
SGLANG_FILES = (
    "dualpath_sglang/hooks.py",
    "dualpath_sglang/launch.py",
    "dualpath_sglang/sglang_api.py",
    "dualpath_sglang/transfer_rooms.py",
    "dualpath_sglang/cpu/",
    "dualpath_sglang/secondpath/adapter.py",
    "dualpath_sglang/secondpath/radix_cache.py",
    "dualpath_sglang/secondpath/sglang_pool.py",
    "dualpath_sglang/secondpath/table.py",
    "dualpath_sglang/renderer/sglang_template.py",
    "benchmarks/attention.py",
)
"""The contact surface with SGLang's internals: everything else sees plain values."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Dotted names of the modules a file imports; TYPE_CHECKING blocks count too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_the_four_folders_are_all_there_is() -> None:
    tracked = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert tracked - {".venv", "out", "build"} <= {*PACKAGES, "tests", "patches"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_init_files_are_empty(package: str) -> None:
    full = [named(f) for f in files(package) if f.name == "__init__.py" and f.stat().st_size]
    assert full == []


def test_the_contract_needs_the_standard_library_and_msgspec_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"dualpath_sglang", "msgspec"}
    for file in files("dualpath_sglang/contract"):
        assert tops(file) <= allowed, named(file)
        ours = {n for n in imports(file) if n.startswith("dualpath_sglang")}
        assert all(n.startswith("dualpath_sglang.contract") for n in ours), named(file)


def test_the_router_never_imports_torch_or_sglang() -> None:
    for file in files("agent_runtime"):
        allowed = {"tokenizers"} if named(file) == "agent_runtime/dispatch/text.py" else set()
        assert not tops(file) & (HEAVY - allowed), named(file)
        ours = {n for n in imports(file) if n.startswith("dualpath_sglang")}
        assert all(n.startswith("dualpath_sglang.contract") for n in ours), named(file)


def test_the_plugin_never_imports_the_router() -> None:
    for file in files("dualpath_sglang"):
        assert not tops(file) & {"agent_runtime", "benchmarks", "fastapi"}, named(file)


def test_scheduling_is_pure() -> None:
    banned = {"asyncio", "time", "logging", "aiohttp", "httpx", "socket", "os", "threading"}
    for file in files("agent_runtime/scheduling"):
        assert not tops(file) & banned, named(file)
        source = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not any(isinstance(n, ast.Await | ast.AsyncFunctionDef) for n in source), named(file)
        inner = {n for n in imports(file) if n.startswith("agent_runtime")}
        allowed = ("agent_runtime.scheduling", "agent_runtime.config")
        assert all(n.startswith(allowed) for n in inner), named(file)


def test_pydantic_stays_at_the_http_edge() -> None:
    for file in files("agent_runtime"):
        if not named(file).startswith("agent_runtime/http/"):
            assert not tops(file) & {"pydantic", "fastapi", "starlette"} or named(file) in (
                "agent_runtime/serve.py",
            ), named(file)


def test_sglang_is_touched_in_listed_files_only() -> None:
    for file in files("dualpath_sglang") + files("benchmarks"):
        if "sglang" in tops(file):
            assert named(file).startswith(SGLANG_FILES), named(file)
