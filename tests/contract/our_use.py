"""What this project's own source takes from SGLang, found without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dualpath_sglang"
WITHOUT_SGLANG = ("contract/", "testmodel", "renderer/")
"""Files that never hold an object of SGLang's."""
OWN = {"second_path", "probes"}
"""Attributes that this project puts on SGLang's objects."""


def sources() -> list[Path]:
    """Of the plugin, and of the benchmarks that run parts of SGLang."""
    return sorted((*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")))


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Imported:
    """`name` of `module`, imported by `file`. attributes: read of it there. keywords: with which
    it is called there."""

    file: str
    module: str
    name: str
    attributes: frozenset[str]
    keywords: frozenset[str]


def imports(file: Path) -> Iterator[Imported]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            for alias in node.names:
                name = alias.asname or alias.name
                yield Imported(
                    named(file),
                    node.module or "",
                    alias.name,
                    frozenset(_attributes_of(tree, name)),
                    frozenset(_keywords_of(tree, name)),
                )


def _attributes_of(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_name(node.value, {name}):
            yield node.attr


def _keywords_of(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_name(node.func, {name}):
            yield from (k.arg for k in node.keywords if k.arg is not None)


def paths_in_text(file: Path) -> Iterator[str]:
    """Dotted paths of SGLang that are written as text, docstrings left out."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) == 1 and words[0].startswith("sglang.") and "::" not in words[0]:
                yield words[0].rstrip(".")


@dataclass(frozen=True)
class Override:
    """A method that a class of ours has beside its base, SGLang's `base`."""

    base: str
    method: str
    parameters: frozenset[str]


def overrides(file: Path) -> Iterator[Override]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bases = {i.name: f"{i.module}.{i.name}" for i in imports(file)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in bases:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        args = (*method.args.args, *method.args.kwonlyargs)
                        names = frozenset(a.arg for a in args)
                        yield Override(bases[base.id], method.name, names)


# --- what mypy cannot see -------------------------------------------------------------------------


OF_CONTAINERS = {name for kind in (dict, list, set, str, bytes) for name in dir(kind)}
"""Methods of what no class of SGLang is."""


def untyped_reads(file: Path) -> list[str]:
    """Places where an attribute is read of something that is typed `Any`, by name: a parameter, an
    attribute of `self`, or what a function of this file gave back."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    giving = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and _is_any(node.returns)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found += _reads_of_self(node)
        elif isinstance(node, ast.FunctionDef):
            found += _reads_of_names(node, giving)
    return [
        f"{named(file)}:{line}: .{name}"
        for line, name in sorted(set(found))
        if name not in OF_CONTAINERS
    ]


def _is_any(annotation: ast.expr | None) -> bool:
    if isinstance(annotation, ast.BinOp):
        return _is_any(annotation.left) or _is_any(annotation.right)
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _reads_of_names(function: ast.FunctionDef, giving: set[str]) -> Iterator[tuple[int, str]]:
    names = _untyped_parameters(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_given(node.value, giving):
            for target in node.targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and (
            _is_name(node.value, names) or _is_given(node.value, giving)
        ):
            yield node.lineno, node.attr


def _untyped_parameters(function: ast.FunctionDef) -> set[str]:
    args = function.args
    every = (*args.posonlyargs, *args.args, *args.kwonlyargs)
    return {arg.arg for arg in every if _is_any(arg.annotation)}


def _is_name(value: ast.expr, names: set[str]) -> bool:
    return isinstance(value, ast.Name) and value.id in names


def _is_given(value: ast.expr, giving: set[str]) -> bool:
    return isinstance(value, ast.Call) and _is_name(value.func, giving)


def _reads_of_self(kind: ast.ClassDef) -> Iterator[tuple[int, str]]:
    untyped = {
        child.target.id
        for child in kind.body
        if isinstance(child, ast.AnnAssign)
        and isinstance(child.target, ast.Name)
        and _is_any(child.annotation)
    }
    for method in kind.body:
        if isinstance(method, ast.FunctionDef):
            untyped |= set(_kept(method))
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and _self_attribute(node.value) in untyped:
            yield node.lineno, node.attr


def _kept(method: ast.FunctionDef) -> Iterator[str]:
    """Attributes of `self` that get a parameter typed `Any`."""
    given = _untyped_parameters(method)
    for node in ast.walk(method):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for to, value in pairs:
                    name = _self_attribute(to)
                    if name and isinstance(value, ast.Name) and value.id in given:
                        yield name


def _self_attribute(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    return ""


def names_asked_for(file: Path) -> Iterator[tuple[int, str]]:
    """Attributes that are asked for by a text that stands there: mypy does not see them."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            yield node.lineno, str(node.args[1].value)
