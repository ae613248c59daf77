"""A YAML file as plain values, and the line on which each of them was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dualpath_sglang.contract.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys of mappings and places in lists, from the top of the file."""
_MERGE = "tag:yaml.org,2002:merge"


class YamlFile:
    """`tree` is {} for an empty file. Raises ConfigError with file and line: no file, no UTF-8, no
    YAML, a key written twice."""

    def __init__(self, file: str | Path) -> None:
        self._file = file
        text = self._text()
        try:
            loader = _Loader(text)
            self._top = loader.get_single_node()
            self.tree: Any = {} if self._top is None else _built(loader, self._top)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._bad(mark.line if mark else 0, str(error.problem)) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            message = f"the character U+{error.character:04X} is not allowed in YAML"
            raise self._bad(line, message) from error
        except RecursionError as error:
            raise self._bad(0, "nested too deeply") from error

    def where(self, path: KeyPath) -> str:
        """`file:line` of a value, or of what it was to be part of."""
        node, line = self._top, 0
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            node, line = found
        return f"{self._file}:{line + 1}"

    def _text(self) -> str:
        try:
            data = Path(self._file).read_bytes()
        except OSError as error:
            message = f"cannot read the configuration {self._file}: {error.strerror}"
            raise ConfigError(message) from error
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start)
            message = f"the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
            raise self._bad(line, message) from error

    def _bad(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self._file}:{line + 1}: not valid YAML: {message}")


def value_of(text: str) -> Any:
    """A value as it could stand in a file. Raises yaml.YAMLError."""
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else _built(loader, node)


def dump(tree: Any) -> str:
    """YAML that reads back as `tree`."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


# PyYAML follows YAML 1.1, where a number with an exponent needs a point and a sign: 1.0e+3.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _built(loader: _Loader, top: Node) -> Any:
    for node in _every(top, set()):
        if isinstance(node, MappingNode):
            _refuse_repeated_keys(node)
    return loader.construct_document(top)


def _every(node: Node, seen: set[int]) -> Iterator[Node]:
    """A node and all below it, once each: anchors may lead back to it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _every(item, seen)
    elif isinstance(node, MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _every(part, seen)


def _refuse_repeated_keys(mapping: MappingNode) -> None:
    """PyYAML keeps the last one silently. Merged keys (`<<`) are there to be written over."""
    seen = set()
    for key, _ in mapping.value:
        if not isinstance(key, ScalarNode) or key.tag == _MERGE:
            continue
        if key.value in seen:
            problem = f"the key {key.value!r} is written twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        seen.add(key.value)


def _child(node: Node | None, step: str | int) -> tuple[Node, int] | None:
    """A part of a node and its line. The last of equal keys counts: merged ones stand first."""
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line
    if isinstance(node, MappingNode):
        for key, value in reversed(node.value):
            if isinstance(key, ScalarNode) and key.value == str(step):
                return value, key.start_mark.line
    return None
