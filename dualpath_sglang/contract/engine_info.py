"""What an engine says of itself, so that the router can plan for it.

The plugin adds `EngineInfo.to_tree()` under `INFO_KEY` to the dictionary that
`Scheduler.get_internal_state` returns (a hook after it). SGLang sends that dictionary to HTTP:

    GET /server_info  ->  {"internal_states": [{"dualpath": {...}, ...}], ...}

one entry per data-parallel rank; the first that has the key counts. Without the plugin the key is
absent and the router makes no plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.pages import KeyLayout

INFO_KEY = "dualpath"
VERSION = 1
ROLES = ("prefill", "decode")


@dataclass(frozen=True)
class EngineInfo:
    """One engine process group, as it is since its start.

    role: prefill or decode. sglang: its version.
    page_size: tokens per KV page. kv_bytes_per_token: K and V, all layers, all ranks.
    fingerprint: equal on engines that may share pages (model, dtype, layout, page size, keys).
    boot_nonce: new at every start. exports: `host:port` of each rank's export server, rank 0
    first (empty: it exports nothing). hooks: targets of the live hooks.
    key_layout: names of its objects in the store.
    """

    role: str
    sglang: str
    page_size: int
    kv_bytes_per_token: int
    fingerprint: str
    boot_nonce: str
    exports: tuple[str, ...]
    hooks: tuple[str, ...]
    key_layout: KeyLayout

    def to_tree(self) -> dict[str, Any]:
        """JSON and msgpack values only."""
        tree = {"v": VERSION, **asdict(self), "exports": list(self.exports)}
        tree["hooks"] = list(self.hooks)
        tree["key_layout"]["suffixes"] = list(self.key_layout.suffixes)
        return tree


def from_tree(tree: object) -> EngineInfo:
    """Strict: a missing, unknown or mistyped field raises EngineFailure that names it."""
    given = _object(tree, "engine info")
    if given.get("v") != VERSION:
        raise EngineFailure(f"engine info has version {given.get('v')!r}, this router: {VERSION}")
    values = _fields(EngineInfo, {k: v for k, v in given.items() if k != "v"}, "engine info")
    if values["role"] not in ROLES:
        raise EngineFailure(f"engine info: role is {values['role']!r}, not one of {ROLES}")
    layout = _object(values["key_layout"], "key_layout")
    values["key_layout"] = KeyLayout(**_fields(KeyLayout, layout, "key_layout"))
    return EngineInfo(**values)


def from_server_info(server_info: Mapping[str, Any]) -> EngineInfo | None:
    """The info in an engine's /server_info; None without the plugin. Raises EngineFailure."""
    states = server_info.get("internal_states")
    for state in states if isinstance(states, list) else ():
        if isinstance(state, Mapping) and INFO_KEY in state:
            return from_tree(state[INFO_KEY])
    return None


def _object(tree: object, what: str) -> dict[str, Any]:
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return dict(tree)
    raise EngineFailure(f"{what} is {type(tree).__name__}, not an object")


def _fields(made: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    names = {field.name: str(field.type) for field in fields(made)}
    for name in sorted(given.keys() ^ names.keys()):
        state = "missing" if name in names else f"unknown: this router knows {sorted(names)}"
        raise EngineFailure(f"{what}: field {name!r} is {state}")
    return {name: _checked(f"{what}: {name}", kind, given[name]) for name, kind in names.items()}


def _checked(name: str, kind: str, value: Any) -> Any:
    """`value` as the annotation `kind` says; the annotations above are the schema."""
    if kind == "KeyLayout":
        return value
    if kind == "tuple[str, ...]":
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise EngineFailure(f"{name} must be a list of strings")
    wanted: type[Any] = {"str": str, "int": int, "bool": bool}[kind]
    if type(value) is not wanted or (kind == "int" and value < 0):
        raise EngineFailure(f"{name} is {value!r}, not a legal {kind}")
    return value
