"""Flags and the settings table, generated from the configuration."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

from agent_runtime.config import EngineGroup, Role, StackConfig
from agent_runtime.settings import Setting, leaves, load
from dualpath_sglang.contract.engine_config import EngineConfig, variable
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.kinds import in_words, parts


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of a stack, and the friendly ones."""
    easy = parser.add_argument_group("the usual flags")
    easy.add_argument("--config", metavar="FILE", help="YAML file; flags and environment win")
    easy.add_argument("--model", dest="model.path", metavar="PATH", help="same as --model.path")
    easy.add_argument("--prefill", type=int, metavar="N", help="number of prefill engines")
    easy.add_argument("--decode", type=int, metavar="M", help="number of decode engines")
    rest = parser.add_argument_group("every setting (also in the file, and as DUALPATH_...)")
    for setting in leaves(StackConfig):
        _add(rest, setting)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Like parse_args, but an unknown flag is a ConfigError that names the nearest one."""
    arguments, unknown = parser.parse_known_args(argv)
    for word in unknown:
        flag = word.split("=")[0]
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see --help"
        raise ConfigError(f"unknown argument {flag!r}{hint}", field=flag)
    return arguments


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


def settings_table(cls: type[Struct], spelled: Callable[[str], str] = str) -> str:
    """A Markdown table of every setting below `cls`; `spelled` is how users write its path."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in leaves(cls):
        shown = _non_defaults(setting.default)
        default = yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=10_000)
        text = default.removesuffix("\n").removesuffix("\n...")
        note = setting.help.replace("|", "\\|")
        name = spelled(setting.path)
        rows.append(f"| `{name}` | {in_words(setting.kind)} | `{text}` | {note} |")
    return "\n".join(rows) + "\n"


def docs() -> str:
    """The settings page: the stack, one group of engines, and the plugin in one engine."""
    return (
        "Every setting can be written in the YAML file (nested), as the environment variable "
        "`DUALPATH_` + its name in capitals with `_` for `.`, and as a flag: `--store.segment-"
        "bytes 0` is `store: {segment_bytes: 0}` and `DUALPATH_STORE_SEGMENT_BYTES=0`. Flags win "
        "over the environment, the environment over the file.\n\n"
        f"{settings_table(StackConfig)}\n"
        f"Each entry of `engines`:\n\n{settings_table(EngineGroup)}\n"
        "The plugin in an engine reads these variables, which go in `env` of its group; of them "
        "`dualpath up` itself sets those of hooks and peers, from `hooks` and `store`:\n\n"
        f"{settings_table(EngineConfig, variable)}"
    )


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the YAML file, for editors that complete and check."""
    tree = msgspec.json.schema(StackConfig)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}


def _non_defaults(value: Any) -> Any:
    """Structs in a list, shown by what is special about them (always their first field)."""
    if not isinstance(value, tuple):
        return value
    shown = []
    for item in value:
        tree = msgspec.to_builtins(item)
        if isinstance(item, Struct):
            usual = msgspec.to_builtins(type(item)())
            first = next(iter(tree))
            tree = {k: v for k, v in tree.items() if k == first or v != usual[k]}
        shown.append(tree)
    return shown


def _add(group: argparse._ArgumentGroup, setting: Setting) -> None:
    help_text = setting.help.replace("%", "%%")
    inner, _ = parts(setting.kind)
    if inner is bool:
        group.add_argument(
            setting.flag,
            f"--no-{setting.flag[2:]}",
            dest=setting.path,
            action=_OnOff,
            nargs=0,
            help=help_text,
        )
        return
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    metavar = "|".join(choices) or setting.path.rsplit(".", 1)[-1].upper()
    group.add_argument(setting.flag, dest=setting.path, metavar=metavar, help=help_text)


class _OnOff(argparse.Action):
    """--x / --no-x, kept as text like every other flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        off = (option_string or "").startswith("--no-")
        setattr(namespace, self.dest, "false" if off else "true")


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
