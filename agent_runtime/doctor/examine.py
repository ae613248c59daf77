"""The examination: who answers, which hooks are live, and one page over every way.

doctor -> store -> P            the page is written once, under keys of its own, and removed
                -> D -> P       at the end whatever happened; engines read it into a page of
                                their pools that is set apart for this
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from agent_runtime.doctor.answers import ask, ask_engine
from agent_runtime.doctor.door import EngineDoor
from agent_runtime.doctor.hops import Hops, Page
from agent_runtime.doctor.places import Places
from agent_runtime.doctor.report import RDMA_NOTE, Hooks, Hop, Report
from agent_runtime.doctor.store_object import ProbeObject, Spec, StoreObject
from agent_runtime.planning.plan_fleet import PlanFleet, plan_fleet
from agent_runtime.planning.store_admin import StoreAdmin
from dualpath_sglang.contract.engine_info import EngineInfo, from_server_info
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.ids import EngineId

ADMIN_TIMEOUT_S = 10.0
NAMESPACE = "dualpath-doctor-"
"""Page hashes are hexadecimal, so no page of a prompt can have this name."""


@dataclass(frozen=True)
class Engine:
    """An engine with a second path, and what it says of itself."""

    door: EngineDoor
    info: EngineInfo
    facts: Mapping[str, Any]


class Examination:
    """One run. `make_object`: tests put a stub here."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        places: Places,
        make_object: Callable[[Spec], StoreObject] = ProbeObject,
    ) -> None:
        self._http = http
        self._places = places
        self._make_object = make_object
        self._run = secrets.token_hex(8)
        self.report = Report()

    async def run(self) -> Report:
        """Never raises for what it finds."""
        engines = await self._engines(await self._answers())
        self._check_agreement(engines)
        if not self.report.cannot_run:
            await self._hops(engines)
        self.report.notes.append(RDMA_NOTE)
        return self.report

    # --- who answers --------------------------------------------------------------------------

    async def _answers(self) -> list[tuple[EngineDoor, EngineInfo]]:
        """Engines that answer and publish what they are."""
        parts = [part for part in self._places.parts if part.kind != "engine"]
        doors = [EngineDoor(self._http, part, self._run) for part in self._places.engines]
        others = await asyncio.gather(*(ask(self._http, part) for part in parts))
        asked = await asyncio.gather(*(ask_engine(door) for door in doors))
        self.report.components = [*others, *(answer for answer, _ in asked)]
        found = []
        for door, (_, tree) in zip(doors, asked, strict=True):
            if tree is None:
                continue
            try:
                info = from_server_info(tree)
            except EngineFailure as error:
                self._broken(f"info of {door.part.name}", error.message, "update both sides")
                continue
            if info is None:
                self.report.notes.append(f"{door.part.name} runs without a second path")
            else:
                found.append((door, info))
        return found

    async def _engines(self, found: Sequence[tuple[EngineDoor, EngineInfo]]) -> list[Engine]:
        """With their own account of hooks and store."""
        engines = []
        for door, info in found:
            name = door.part.name
            try:
                facts = (await door.probe("describe")).facts
                engines.append(Engine(door, info, facts))
            except EngineFailure as error:
                self._broken(f"door of {name}", error.message, "is its plugin of this version?")
                continue
            self.report.hooks.append(_hooks(name, facts["hooks"]))
            for text in facts["dead_threads"]:
                self._broken(f"threads of {name}", text, "restart the engine; see its log")
        return engines

    def _check_agreement(self, engines: Sequence[Engine]) -> None:
        if not engines:
            if any(engine.answers for engine in self.report.components if engine.kind == "engine"):
                self.report.cannot_run = "no engine with a second path answers (hooks: all)"
            elif not self._places.engines:
                self.report.cannot_run = "the stack has no engines"
            return
        infos = {EngineId(e.door.part.name): e.info for e in engines}
        fleet = plan_fleet(infos)
        why = fleet if isinstance(fleet, str) else _left_out(infos, fleet)
        if why:
            fix = "start all engines with one model, dtype, page size and store; update all weights"
            self._broken("engines can share pages", why, fix)

    def _broken(self, name: str, why: str, fix: str) -> None:
        self.report.hops.append(Hop(name, "BROKEN", why, fix))

    # --- one page over every way --------------------------------------------------------------

    async def _hops(self, engines: Sequence[Engine]) -> None:
        if not engines:
            return
        first = engines[0]
        page = _page(first.info)
        store = first.facts["store"]
        spec = Spec(
            store["master"],
            store["protocol"],
            store["device"],
            store["tenant"],
            page.name,
            page.part_bytes,
            page.keys,
        )
        self.report.notes += [
            f"the page: {page.parts} objects of {page.part_bytes} bytes named {page.keys[0]} ...",
            f"protocols: store {store['protocol']}, D -> P {first.facts['peer_protocol']}",
        ]
        hops = Hops(self.report, page, self._make_object(spec), self._admin(), store["master"])
        decodes = [engine for engine in engines if engine.info.role == "decode"]
        try:
            if await hops.write():
                await hops.to_engines([(e.door, e.facts) for e in engines])
            else:
                hops.not_written([e.door for e in engines])
            await hops.pairs(
                [e.door for e in engines if e.info.role == "prefill"],
                [(e.door, e.info.exports) for e in decodes],
            )
        finally:
            await hops.release([e.door for e in decodes])
            await hops.remove()

    def _admin(self) -> StoreAdmin | None:
        url = self._places.store_admin_url
        return StoreAdmin(self._http, url, timeout_s=ADMIN_TIMEOUT_S) if url else None


def _left_out(infos: Mapping[EngineId, EngineInfo], fleet: PlanFleet) -> str:
    names = ", ".join(f"{name!r}" for name in infos if name not in fleet.engines)
    return f"{names}: pages of another model, other weights, layout or keys" if names else ""


def _page(info: EngineInfo) -> Page:
    name = NAMESPACE + secrets.token_hex(16)
    keys = info.key_layout.object_keys(name)
    page_bytes = info.kv_bytes_per_token * info.page_size
    return Page(name, keys, page_bytes // len(keys))


def _hooks(name: str, facts: Sequence[Mapping[str, Any]]) -> Hooks:
    def row(fact: Mapping[str, Any]) -> str:
        target = str(fact["target"]).removeprefix("sglang.srt.")
        return f"{target} ({fact['kind']}): {fact['why']}"

    live = tuple(row(fact) for fact in facts if fact["live"])
    return Hooks(name, live, tuple(row(fact) for fact in facts if not fact["live"]))
