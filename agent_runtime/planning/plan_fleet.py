"""Which engines can take plans together: those that name and shape their pages alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dualpath_sglang.contract.engine_info import EngineInfo
from dualpath_sglang.contract.ids import EngineId
from dualpath_sglang.contract.pages import KeyLayout

Infos = Mapping[EngineId, EngineInfo]


@dataclass(frozen=True)
class PlanFleet:
    """`engines` may be planned for in any pairing; `exports`: of the decode engines."""

    layout: KeyLayout
    fingerprint: str
    engines: frozenset[EngineId]
    exports: Mapping[EngineId, tuple[str, ...]]


def plan_fleet(infos: Mapping[EngineId, EngineInfo | None]) -> PlanFleet | str:
    """From what the engines publish (null: nothing); a string says why there can be no plans.

    Engines without the plugin are left out, and so are those that contradict themselves. Where
    the others have pages of several kinds, as while weights are updated one engine after the
    other, it is the largest group with both roles.
    """
    problems: list[str] = []
    groups: dict[tuple[str, KeyLayout], dict[EngineId, EngineInfo]] = defaultdict(dict)
    for name, info in infos.items():
        if info is None:
            continue
        if problem := _unusable(name, info):
            problems.append(problem)
        else:
            groups[info.fingerprint, info.key_layout][name] = info
    whole = [group for group in groups.values() if not _missing(group)]
    if not whole:
        return _why(groups.values(), problems)
    return _fleet(max(whole, key=_size))


def _fleet(group: Infos) -> PlanFleet:
    first = next(iter(group.values()))
    return PlanFleet(
        layout=first.key_layout,
        fingerprint=first.fingerprint,
        engines=frozenset(group),
        exports={name: info.exports for name, info in group.items() if info.role == "decode"},
    )


def _size(group: Infos) -> tuple[int, int]:
    """First the turns that it can serve at once."""
    decode = sum(info.role == "decode" for info in group.values())
    return min(decode, len(group) - decode), len(group)


def _missing(group: Infos) -> str:
    roles = {info.role for info in group.values()}
    return next((role for role in ("prefill", "decode") if role not in roles), "")


def _why(groups: Collection[Infos], problems: Sequence[str]) -> str:
    if problems:
        return problems[0]
    every = {name: info for group in groups for name, info in group.items()}
    if role := _missing(every):
        return f"no {role} engine publishes what a plan needs"
    names = ", ".join(f"{name!r}: {info.fingerprint[:8]}" for name, info in every.items())
    return f"no prefill and decode engine agree in model, weights, layout, pages and keys: {names}"


def _unusable(name: EngineId, info: EngineInfo) -> str:
    layout = info.key_layout
    if layout.page_size != info.page_size or info.page_size < 1:
        return f"engine {name!r} has pages of {info.page_size} tokens, its store {layout.page_size}"
    if info.role == "decode" and len(info.exports) != layout.tp_size:
        return f"engine {name!r} exports {len(info.exports)} of {layout.tp_size} ranks"
    return ""
