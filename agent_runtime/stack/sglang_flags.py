"""The flags of the installed SGLang, read from its source files.

Importing SGLang takes many seconds (and torch), so a misspelt flag would be found late. Its flags
are declared one per line in `srt/arg_groups/fields/*.py`; the older ones in `server_args.py`.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from agent_runtime.config import StackConfig
from dualpath_sglang.contract.errors import ConfigError

_FIELD = re.compile(r"^    (\w+): A\[", re.MULTILINE)
_FLAG = re.compile(r"--([a-z][a-z0-9-]+)")


def known_flags() -> frozenset[str]:
    """Names without dashes in front; empty when SGLang or its source is not found."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        return frozenset()
    srt = Path(spec.origin).parent / "srt"
    names: set[str] = set()
    for file in (*(srt / "arg_groups/fields").glob("*.py"), srt / "server_args.py"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            names.update(name.replace("_", "-") for name in _FIELD.findall(text))
            names.update(_FLAG.findall(text))
    return frozenset(names)


def check_flags(config: StackConfig, known: frozenset[str]) -> None:
    """Raise ConfigError for a flag of a group that SGLang does not have.

    Beginnings of flags pass, as they do with SGLang's own parser (`tp` for `tp-size`).
    """
    if not known:
        return
    for g, group in enumerate(config.engines):
        for key in group.flags:
            flag = key.replace("_", "-")
            bare = flag.removeprefix("no-")
            if any(name.startswith((flag, bare)) for name in known):
                continue
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            where = f"engines[{g}].flags.{key}"
            raise ConfigError(f"{where}: SGLang has no flag --{flag}{hint}", field=where)
