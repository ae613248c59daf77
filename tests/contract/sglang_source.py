"""What a SGLang has, by its source: classes, functions, their members and parameters."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Found = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
Functions = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A definition and the module that has it."""

    module: str
    node: Found


class Source:
    """Below `root` lies the folder `sglang/`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, path: str) -> Place | None:
        """What a dotted path names: a module, or a class, function or method in one, inherited and
        imported ones too."""
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            module = ".".join(parts[:end])
            tree = self._tree(module)
            if tree is not None:
                return self._within(Place(module, tree), parts[end:])
        return None

    def members(self, path: str) -> frozenset[str] | None:
        """Names of a class's methods and attributes, inherited ones and those that methods set on
        `self` too, or of a module's definitions; None: there is no such class."""
        place = self.find(path)
        if place is None or isinstance(place.node, Functions):
            return None
        return frozenset(self._members(place))

    def parameters(self, path: str) -> frozenset[str] | None:
        """Of a function; of a class those that make one; None: there is no such thing."""
        place = self.find(path)
        if place is None or isinstance(place.node, ast.Module):
            return None
        if isinstance(place.node, Functions):
            return _parameters(place.node)
        made = self._within(place, ["__init__"])
        if made is not None and isinstance(made.node, Functions):
            return _parameters(made.node)
        return frozenset(name for one in self._line(place) for name in _annotated(one.node))

    def text(self, path: str) -> str:
        """Source of a class or function; empty: there is no such thing."""
        place = self.find(path)
        if place is None or isinstance(place.node, ast.Module):
            return ""
        file = self._file(place.module)
        assert file is not None
        return ast.get_source_segment(file.read_text(encoding="utf-8"), place.node) or ""

    def has(self, module: str, name: str) -> bool:
        """Can `name` be imported from `module`?"""
        tree = self._tree(module)
        if tree is None:
            return False
        if name in _defined(tree) or self._tree(f"{module}.{name}") is not None:
            return True
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = {alias.asname or alias.name for alias in node.names}
                if name in names or ("*" in names and self.has(node.module, name)):
                    return True
        return False

    def folder(self, package: str) -> Path:
        """Where the modules of a package lie."""
        return self._root.joinpath(*package.split("."))

    def _within(self, place: Place, names: list[str]) -> Place | None:
        if not names:
            return place
        if isinstance(place.node, Functions):
            return None
        for node in _flat(place.node.body):
            if isinstance(node, Functions | ast.ClassDef) and node.name == names[0]:
                return self._within(Place(place.module, node), names[1:])
        if isinstance(place.node, ast.ClassDef):
            bases = (self._within(base, names) for base in self._bases(place))
            return next((found for found in bases if found is not None), None)
        imported = self._imported(place.module, names[0])
        return self._within(imported, names[1:]) if imported is not None else None

    def _imported(self, module: str, name: str) -> Place | None:
        tree = self._tree(module)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.find(f"{node.module}.{alias.name}")
                    if alias.name == "*" and self.has(node.module, name):
                        return self.find(f"{node.module}.{name}")
        return None

    def _bases(self, place: Place) -> Iterator[Place]:
        assert isinstance(place.node, ast.ClassDef)
        tree = self._tree(place.module)
        assert tree is not None
        for base in place.node.bases:
            if isinstance(base, ast.Name):
                found = self._within(Place(place.module, tree), [base.id])
                if found is not None and isinstance(found.node, ast.ClassDef):
                    yield found

    def _line(self, place: Place) -> Iterator[Place]:
        """The class and all its bases that are SGLang's."""
        yield place
        for base in self._bases(place):
            yield from self._line(base)

    def _members(self, place: Place) -> Iterator[str]:
        if isinstance(place.node, ast.Module):
            yield from _defined(place.node)
            return
        for one in self._line(place):
            yield from _defined(one.node)
            for node in _flat(one.node.body):
                if isinstance(node, Functions):
                    yield from _set_on_self(node)

    def _tree(self, module: str) -> ast.Module | None:
        file = self._file(module)
        return _parsed(file) if file is not None else None

    def _file(self, module: str) -> Path | None:
        base = self._root.joinpath(*module.split("."))
        files = (base.with_suffix(".py"), base / "__init__.py")
        return next((file for file in files if file.is_file()), None)


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Also what is defined for some platforms or installations only."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _flat((*node.body, *node.orelse))
        elif isinstance(node, ast.Try):
            yield from _flat((*node.body, *node.orelse))
            for handler in node.handlers:
                yield from _flat(handler.body)


def _defined(node: ast.AST) -> Iterator[str]:
    assert isinstance(node, ast.ClassDef | ast.Module)
    for child in _flat(node.body):
        if isinstance(child, Functions | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Assign):
            for target in child.targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id


def _annotated(node: ast.AST) -> Iterator[str]:
    assert isinstance(node, ast.ClassDef)
    for child in _flat(node.body):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id


def _set_on_self(function: Functions) -> Iterator[str]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == arguments[0].arg
        ):
            yield node.attr


def _parameters(node: Functions) -> frozenset[str]:
    args = node.args
    extra = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return frozenset(a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, *extra))
