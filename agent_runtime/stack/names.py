"""The name of every engine of a stack. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from agent_runtime.config import EngineGroup, StackConfig


@dataclass(frozen=True)
class NamedEngine:
    """One engine of a group; `where` is the group's place in the settings."""

    name: str
    group: EngineGroup
    index: int
    where: str


def named_engines(config: StackConfig) -> tuple[NamedEngine, ...]:
    """Every engine with its name: the group's name alone if it is given and single."""
    seen: Counter[str] = Counter()
    engines = []
    for g, group in enumerate(config.engines):
        prefix = group.name or group.role
        for index in range(group.count):
            name = prefix if group.name and group.count == 1 else f"{prefix}-{seen[prefix]}"
            seen[prefix] += 1
            engines.append(NamedEngine(name, group, index, f"engines[{g}]"))
    return tuple(engines)
