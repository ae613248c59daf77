"""Hook targets looked up in the source of a SGLang that is unpacked, not installed or imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dualpath_sglang.hooks import Hook


@dataclass(frozen=True)
class Finding:
    """One target in one version. `problem` is empty when the hook would fit."""

    target: str
    problem: str


def check_source(root: Path, hooks: Iterable[Hook]) -> list[Finding]:
    """One finding per hook, in their order. `root` is the folder that holds `sglang/`."""
    return [Finding(hook.target, _problem(root, hook)) for hook in hooks]


def _problem(root: Path, hook: Hook) -> str:
    found = _module_of(root, hook.target)
    node = _lookup(root, *found) if found else None
    if node is None:
        return "is gone"
    wanted = [name for name in hook.parameters if name not in _parameters(node)]
    return f"lost parameter {', '.join(wanted)}" if wanted else ""


def _module_of(root: Path, target: str) -> tuple[str, list[str]] | None:
    """Split a dotted path into the longest module that is a file, and the names in it."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if _file(root, ".".join(parts[:end])) is not None:
            return ".".join(parts[:end]), parts[end:]
    return None


def _file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _lookup(root: Path, module: str, names: list[str]) -> ast.FunctionDef | None:
    file = _file(root, module)
    if file is None:
        return None
    tree = _tree(file)
    if len(names) == 1:
        return _function(tree.body, names[0]) or _imported(root, tree, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == names[0]:
            return _function(node.body, names[1]) or _inherited(root, module, node, names[1])
    return _imported(root, tree, names)


def _inherited(root: Path, module: str, node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _lookup(root, module, [base.id, name])):
            return found
    return None


def _imported(root: Path, tree: ast.Module, names: list[str]) -> ast.FunctionDef | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == names[0]:
                    return _lookup(root, node.module, [alias.name, *names[1:]])
    return None


def _function(body: list[ast.stmt], name: str) -> ast.FunctionDef | None:
    # Also below an `if`: some functions are defined for one platform only.
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.If) and (found := _function(node.body, name)):
            return found
    return None


def _parameters(node: ast.FunctionDef) -> set[str]:
    args = node.args
    return {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
