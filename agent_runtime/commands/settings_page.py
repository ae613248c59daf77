"""The settings as a Markdown page and as a JSON schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from agent_runtime.config import EngineGroup, StackConfig
from agent_runtime.settings import leaves
from dualpath_sglang.contract.engine_config import EngineConfig, variable
from dualpath_sglang.contract.kinds import in_words


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
