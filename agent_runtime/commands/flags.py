"""The flags of `dualpath up`, generated from the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Literal, get_args, get_origin

import msgspec
from argcomplete.completers import ChoicesCompleter

from agent_runtime.config import EngineGroup, Role, StackConfig
from agent_runtime.settings import Setting, leaves, load
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.kinds import help_of, parts


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of a stack, by section, and the friendly ones."""
    easy = parser.add_argument_group("the usual flags")
    easy.add_argument("--config", metavar="FILE", help="YAML file; flags and environment win")
    easy.add_argument("--model", dest="model.path", metavar="PATH", help="same as --model.path")
    easy.add_argument("--prefill", type=int, metavar="N", help="number of prefill engines")
    easy.add_argument("--decode", type=int, metavar="M", help="number of decode engines")
    title = "every setting (also in the file, and as DUALPATH_...)"
    groups = {"": parser.add_argument_group(title)}
    for section in msgspec.structs.fields(StackConfig):
        groups[section.name] = parser.add_argument_group(help_of(section.type))
    for setting in leaves(StackConfig):
        _add(groups[setting.path.rpartition(".")[0]], setting)


def stack_config(arguments: argparse.Namespace, env: Mapping[str, str]) -> StackConfig:
    """File < environment < flags, then --prefill and --decode. Raises ConfigError."""
    given = vars(arguments)
    paths = {setting.path for setting in leaves(StackConfig)}
    flags = {path: str(given[path]) for path in paths if given.get(path) is not None}
    config = load(StackConfig, file=given.get("config"), env=env, flags=flags)
    for role in ("prefill", "decode"):
        if given.get(role) is not None:
            config = _with_count(config, role, given[role])
    return config


def _add(group: argparse._ArgumentGroup, setting: Setting) -> None:
    text = setting.help.replace("%", "%%")
    inner, _ = parts(setting.kind)
    if inner is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(setting.flag, dest=setting.path, action=action, help=text)
        return
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    word = {int: "N", float: "X"}.get(inner, setting.path.rpartition(".")[2].upper())
    metavar = "|".join(choices) or word
    flag = group.add_argument(setting.flag, dest=setting.path, metavar=metavar, help=text)
    # argcomplete looks for this attribute; its types are not up to its own documentation.
    if choices:
        flag.completer = ChoicesCompleter(choices)  # type: ignore[attr-defined, arg-type]


def _with_count(config: StackConfig, role: Role, count: int) -> StackConfig:
    """`config` with `count` engines of a role, in the one group of that role."""
    flag = f"--{role}"
    if count < 0:
        raise ConfigError(f"{flag}: expected at least 0, got {count}", field=flag)
    groups = [g for g in config.engines if g.role == role]
    if len(groups) > 1:
        message = f"{flag}: the configuration has {len(groups)} groups of {role} engines"
        raise ConfigError(f"{message}; set their `count` there", field=flag)
    if not groups:
        added = (*config.engines, EngineGroup(role=role, count=count))
        return msgspec.structs.replace(config, engines=added)
    changed = msgspec.structs.replace(groups[0], count=count)
    engines = tuple(changed if g is groups[0] else g for g in config.engines)
    return msgspec.structs.replace(config, engines=engines)
