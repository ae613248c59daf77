"""Which engines can take plans together: those that name and shape their pages alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.ids import EngineId
from dualpath_sglang.contract.pages import KeyLayout


@dataclass(frozen=True)
class PlanFleet:
    """`engines` may be planned for in any pairing; `exports`: of the decode engines."""

    layout: KeyLayout
    fingerprint: str
    engines: frozenset[EngineId]
    exports: Mapping[EngineId, tuple[str, ...]]


def plan_fleet(infos: Mapping[EngineId, EngineInfo | None]) -> PlanFleet | str:
    """From what the engines publish (null: nothing); a string says why there can be no plans.

    Engines without the plugin are left out. Engines that disagree end planning for all: pages of
    the one would be wrong for the other, and nobody can say who is right.
    """
    usable = {name: info for name, info in infos.items() if info}
    for role in ("prefill", "decode"):
        if not any(info.role == role for info in usable.values()):
            return f"no {role} engine publishes what a plan needs"
    problems = [text for name, info in usable.items() if (text := _unusable(name, info))]
    if problems:
        return problems[0]
    first_name, first = next(iter(usable.items()))
    for name, info in usable.items():
        if (info.fingerprint, info.key_layout) != (first.fingerprint, first.key_layout):
            return f"engines {first_name!r} and {name!r} differ in model, layout, pages or keys"
    return PlanFleet(
        layout=first.key_layout,
        fingerprint=first.fingerprint,
        engines=frozenset(usable),
        exports={name: info.exports for name, info in usable.items() if info.role == "decode"},
    )


def _unusable(name: EngineId, info: EngineInfo) -> str:
    layout = info.key_layout
    if layout.page_size != info.page_size or info.page_size < 1:
        return f"engine {name!r} has pages of {info.page_size} tokens, its store {layout.page_size}"
    if info.role == "decode" and len(info.exports) != layout.tp_size:
        return f"engine {name!r} exports {len(info.exports)} of {layout.tp_size} ranks"
    return ""
