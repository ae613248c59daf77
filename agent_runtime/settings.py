"""YAML file < environment < flags, as one frozen struct.

msgspec decodes; what it refuses is a `ConfigError` that names the key, where it was written and
what to write instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import msgspec
import yaml
from msgspec import NODEFAULT, Struct

from agent_runtime.yaml_file import KeyPath, YamlFile, dump, value_of
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.kinds import help_of, in_words, is_secret, parts

ENV_PREFIX = "DUALPATH_"
NOT_SETTINGS = ("DUALPATH_CHILD_", "DUALPATH_ENGINE_", "DUALPATH_TEST_")
"""Prefixes of variables that our own processes pass to each other; the loader ignores them."""
KEY_VARIABLE = "DUALPATH_API_KEY"
"""The key that our clients send; no setting of a server."""

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
Where = Callable[[KeyPath], str]
"""Where a value was written, in words."""


class Setting(Struct, frozen=True):
    """One leaf of a configuration tree, for example `router.port`."""

    path: str
    kind: Any
    default: Any

    @property
    def help(self) -> str:
        return help_of(self.kind)

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.path.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")


def leaves(cls: type[Struct], prefix: str = "") -> Iterator[Setting]:
    """Every setting below a configuration struct, in order of declaration."""
    for field in msgspec.structs.fields(cls):
        if section := _struct(field.type):
            yield from leaves(section, f"{prefix}{field.name}.")
        else:
            made = field.default_factory
            default = field.default if made is NODEFAULT else cast("Callable[[], Any]", made)()
            yield Setting(prefix + field.name, field.type, default)


def load(
    cls: type[S],
    *,
    file: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> S:
    """Build `cls` from its defaults, then `file` (YAML), then `env`, then `flags`.

    `env` maps names such as DUALPATH_ROUTER_PORT, `flags` dotted paths such as router.port; both
    to text. Raises ConfigError.
    """
    written = None if file is None else YamlFile(file)
    config = cls() if written is None else decode(cls, written.tree, written.where)
    known = {setting.path: setting for setting in leaves(cls)}
    for path, name, text in _from_env(known, env or {}):
        config = override(config, known[path], text, f"environment variable {name}")
    for path, text in (flags or {}).items():
        if path not in known:
            raise ConfigError(f"unknown setting {path!r}{_nearest(path, known)}", field=path)
        config = override(config, known[path], text, f"flag {known[path].flag}")
    return config


def override(config: S, setting: Setting, text: str, where: str) -> S:
    """`config` with one leaf replaced by a value written as text."""
    path = tuple(setting.path.split("."))
    value = _decoded(setting.kind, _from_text(setting.kind, text), path, lambda _: where)
    return _replace(config, path, value)


def decode(cls: type[T], tree: Any, where: Where | str) -> T:
    """A plain tree (from YAML or JSON) as `cls`. Raises ConfigError."""
    place = (lambda _: where) if isinstance(where, str) else where
    return cast("T", _decoded(cls, tree, (), place))


def dump_yaml(config: Struct) -> str:
    return dump(msgspec.to_builtins(config))


# --- decoding -----------------------------------------------------------------------------


def _decoded(kind: Any, value: Any, path: KeyPath, where: Where) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _misfit(kind, value, path, where) from error


def _from_text(kind: Any, text: str) -> Any:
    """A flag or environment value in the form YAML would have given it."""
    inner, _ = parts(kind)
    if inner is str or get_origin(inner) is Literal:
        return text
    if inner is bool and text in ("0", "1"):
        return text == "1"
    try:
        return value_of(text)
    except yaml.YAMLError:
        return text


def _from_env(
    known: Mapping[str, Setting], env: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    by_name = {setting.env: path for path, setting in known.items()}
    for name in sorted(env):
        ours = name == KEY_VARIABLE or name.startswith(NOT_SETTINGS)
        if ours or not name.startswith(ENV_PREFIX):
            continue
        if name not in by_name:
            message = f"unknown environment variable {name!r}{_nearest(name, by_name)}"
            raise ConfigError(message, field=name)
        yield by_name[name], name, env[name]


def _replace(config: S, path: KeyPath, value: Any) -> S:
    name = str(path[0])
    if len(path) > 1:
        value = _replace(getattr(config, name), path[1:], value)
    return msgspec.structs.replace(config, **{name: value})


# --- what does not fit --------------------------------------------------------------------


def _misfit(kind: Any, value: Any, path: KeyPath, where: Where) -> ConfigError:
    """What is wrong with `value`, which is no `kind`: the smallest part of it that does not fit."""
    inner, _ = parts(kind)
    for step, part_kind, part in _parts_of(inner, value):
        here = (*path, step)
        if part_kind is None:
            return _unknown(_struct(inner), here, where)
        try:
            msgspec.convert(part, part_kind)
        except msgspec.ValidationError:
            return _misfit(part_kind, part, here, where)
    name = _spelled(path) or "the file"
    got = "something else, which is not shown here" if _holds_secrets(kind) else repr(value)
    message = f"{name} in {where(path)}: expected {_expected(kind)}, got {got}"
    return ConfigError(message + _hint(inner, value), field=name)


def _parts_of(kind: Any, value: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """Key or place, type and value of each part; the type of a part that cannot be is None."""
    section, inside = _struct(kind), get_args(kind)
    if isinstance(value, Mapping) and section is not None:
        types = {field.name: field.type for field in msgspec.structs.fields(section)}
        yield from ((key, types.get(key), item) for key, item in value.items())
    elif isinstance(value, Mapping) and _origin_is(kind, Mapping):
        yield from ((key, inside[1], item) for key, item in value.items())
    elif isinstance(value, list | tuple) and _origin_is(kind, tuple):
        yield from ((place, inside[0], item) for place, item in enumerate(value))


def _unknown(section: type[Struct] | None, path: KeyPath, where: Where) -> ConfigError:
    assert section is not None
    names = section.__struct_fields__
    known = [_spelled((*path[:-1], name)) for name in names]
    name, key = _spelled(path), str(path[-1])
    elsewhere = [leaf.path for leaf in leaves(section) if leaf.path.rpartition(".")[2] == key]
    hint = _nearest(name, known) or (
        f"; did you mean {elsewhere[0]!r}?" if elsewhere else "; valid keys: " + ", ".join(names)
    )
    return ConfigError(f"unknown key {name!r} in {where(path)}{hint}", field=name)


def _expected(kind: Any) -> str:
    inner, _ = parts(kind)
    if _struct(inner):
        return "a mapping of settings"
    return "a list" if _origin_is(inner, tuple) else in_words(kind)


def _holds_secrets(kind: Any) -> bool:
    inner, _ = parts(kind)
    return is_secret(kind) or any(is_secret(inside) for inside in get_args(inner))


def _hint(kind: Any, value: Any) -> str:
    if get_origin(kind) is Literal:
        return _nearest(str(value), [str(choice) for choice in get_args(kind)])
    return " (write it in quotes)" if kind is str and value is not None else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _spelled(path: KeyPath) -> str:
    """For example `engines[0].role`."""
    words = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(words).removeprefix(".")


def _struct(kind: Any) -> type[Struct] | None:
    inner, _ = parts(kind)
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _origin_is(kind: Any, wanted: type[Any]) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, wanted)
