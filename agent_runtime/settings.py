"""The one strict loader: YAML file < environment < flags, into frozen dataclasses.

A key that no dataclass declares, a value of the wrong type and a number below its minimum are
`ConfigError`s that name the key, where it was written and what to write instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dualpath_sglang.contract.errors import ConfigError

ENV_PREFIX = "DUALPATH_"
NOT_SETTINGS = ("DUALPATH_CHILD_", "DUALPATH_ENGINE_", "DUALPATH_TEST_")
"""Prefixes of variables that our own processes pass to each other; the loader ignores them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration tree, for example `router.port`."""

    path: str
    type: Any
    default: Any
    help: str
    at_least: float | None

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.path.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")


def leaves(cls: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Every setting below a configuration dataclass, in order of declaration."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from leaves(kind, f"{prefix}{f.name}.")
        else:
            yield Setting(prefix + f.name, kind, _default(f), *_meta(f))


def load(
    cls: type[T],
    *,
    file: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> T:
    """Build `cls` from its defaults, then `file` (YAML), then `env`, then `flags`.

    `env` maps names such as DUALPATH_ROUTER_PORT, `flags` dotted paths such as router.port; both
    to text. Raises ConfigError.
    """
    config = decode(cls, {}, "the defaults")
    if file is not None:
        config = decode(cls, read_yaml(file), str(file))
    known = {s.path: s for s in leaves(cls)}
    for path, name, text in _from_env(known, env or {}):
        config = override(config, known[path], text, f"environment variable {name}")
    for path, text in (flags or {}).items():
        if path not in known:
            raise ConfigError(f"unknown setting {path!r}{_nearest(path, known)}", field=path)
        config = override(config, known[path], text, f"flag {known[path].flag}")
    return config


def override(config: T, leaf: Setting, text: str, where: str) -> T:
    """`config` with one leaf replaced by a value written as text."""
    value = _decode(leaf.type, _from_text(leaf.type, text), leaf.path, where)
    _check_minimum(value, leaf.at_least, leaf.path, where)
    replaced: T = _replace(config, leaf.path.split("."), value)
    return replaced


def read_yaml(file: str | Path) -> Any:
    """The content of a YAML (or JSON) file; duplicate keys are errors. Empty reads as {}."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from error
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    return {} if tree is None else tree


def decode(cls: type[T], tree: Any, where: str) -> T:
    """A plain tree (from YAML or JSON) as the dataclass `cls`. Raises ConfigError."""
    value: T = _dataclass(cls, tree, "", where)
    return value


def to_tree(config: Any) -> Any:
    """The inverse of `decode`: dataclasses as plain dicts and lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_tree(item) for item in config]
    if isinstance(config, Mapping):
        return {key: to_tree(value) for key, value in config.items()}
    return config


def dump_yaml(config: Any) -> str:
    text: str = yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)
    return text


# --- decoding -----------------------------------------------------------------------------


def _decode(kind: Any, value: Any, path: str, where: str) -> Any:
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, path, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices or isinstance(value, bool):
            hint = _nearest(str(value), [str(c) for c in choices])
            raise _wrong(path, where, type_name(kind), value, hint)
        return value
    if origin is tuple:
        return _tuple(kind, value, path, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(kind, value, path, where)
    if origin in (typing.Union, types.UnionType):
        return _union(kind, value, path, where)
    return _scalar(kind, value, path, where)


def _dataclass(cls: Any, value: Any, path: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(path or "the file", where, "a mapping of settings", value)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    decoded = {}
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            known = [f"{path}.{name}" if path else name for name in fields]
            hint = _nearest(here, known) or _elsewhere(str(key), cls) or _valid_keys(fields)
            raise ConfigError(f"unknown key {here!r} in {where}{hint}", field=here)
        decoded[key] = _decode(hints[key], item, here, where)
        _check_minimum(decoded[key], _meta(fields[key])[1], here, where)
    return cls(**decoded)


def _tuple(kind: Any, value: Any, path: str, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(path, where, "a list", value)
    item_kind = typing.get_args(kind)[0]
    return tuple(_decode(item_kind, v, f"{path}[{i}]", where) for i, v in enumerate(value))


def _mapping(kind: Any, value: Any, path: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(path, where, "a mapping", value)
    item_kind = typing.get_args(kind)[1]
    for key in value:
        if not isinstance(key, str):
            raise _wrong(path, where, "keys that are text", key)
    return {k: _decode(item_kind, v, f"{path}.{k}", where) for k, v in value.items()}


def _union(kind: Any, value: Any, path: str, where: str) -> Any:
    for option in typing.get_args(kind):
        if option is type(None) and value is None:
            return None
        with contextlib.suppress(ConfigError, TypeError):
            return _decode(option, value, path, where)
    raise _wrong(path, where, type_name(kind), value)


def _scalar(kind: Any, value: Any, path: str, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, but `port: true` is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        quote = " (write it in quotes)" if kind is str and value is not None else ""
        raise _wrong(path, where, type_name(kind), value, quote)
    return value


def _from_text(kind: Any, text: str) -> Any:
    """A flag or environment value in the form YAML would have given it."""
    if kind is str:
        return text
    if typing.get_origin(kind) is typing.Literal:
        by_text = {str(choice): choice for choice in typing.get_args(kind)}
        return by_text.get(text, text)
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return words.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        return text


def _from_env(
    known: Mapping[str, Setting], env: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    by_name = {s.env: path for path, s in known.items()}
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX) or name.startswith(NOT_SETTINGS):
            continue
        if name not in by_name:
            message = f"unknown environment variable {name!r}{_nearest(name, by_name)}"
            raise ConfigError(message, field=name)
        yield by_name[name], name, env[name]


def _replace(config: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _replace(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})


# --- words --------------------------------------------------------------------------------


def type_name(kind: Any) -> str:
    """A type in words, as error messages and the settings table show it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) or '""' for a in args)
    if origin is tuple:
        return "list of " + type_name(args[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of text to {type_name(args[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "nothing" if kind is type(None) else str(kind.__name__))


def _wrong(path: str, where: str, expected: str, value: Any, hint: str = "") -> ConfigError:
    got = f"got {value!r}"
    return ConfigError(f"{path} in {where}: expected {expected}, {got}{hint}", field=path)


def _check_minimum(value: Any, at_least: float | None, path: str, where: str) -> None:
    if at_least is not None and isinstance(value, int | float) and value < at_least:
        raise _wrong(path, where, f"at least {at_least:g}", value)


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _elsewhere(key: str, cls: type[Any]) -> str:
    """A key that is right but in the wrong section."""
    paths = [s.path for s in leaves(cls) if s.path.rsplit(".", 1)[-1] == key]
    return f"; did you mean {paths[0]!r}?" if paths else ""


def _valid_keys(fields: Mapping[str, Any]) -> str:
    return "; valid keys: " + ", ".join(fields)


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def _meta(f: dataclasses.Field[Any]) -> tuple[str, float | None]:
    return f.metadata.get("help", ""), f.metadata.get("at_least")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (PyYAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)
