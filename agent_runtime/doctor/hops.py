"""Every way that a page can take, tried one after the other; each becomes a row of the report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_runtime.doctor.door import EngineDoor
from agent_runtime.doctor.fixes import Way, likely_fix
from agent_runtime.doctor.report import Hop, Report, Status
from agent_runtime.doctor.store_object import StoreObject
from agent_runtime.planning.store_admin import Objects
from dualpath_sglang.contract.errors import EngineFailure, StoreFailure
from dualpath_sglang.contract.probe import ProbeResult, Source, seeded_parts, sum_of

WRITE_STEPS = {"mount": "doctor -> master", "write": "doctor -> store", "find": "find in the store"}
READ_BACK = "store -> doctor"
NOT_PROBED = "SGLang's own transfer, part of every turn; not probed"


@dataclass(frozen=True)
class Page:
    """name: stands where a page's hash would, and is the seed of its bytes. keys: its objects,
    `part_bytes` each."""

    name: str
    keys: tuple[str, ...]
    part_bytes: int

    @property
    def parts(self) -> int:
        return len(self.keys)

    def sums(self) -> tuple[str, ...]:
        return tuple(map(sum_of, seeded_parts(self.name, self.parts, self.part_bytes)))


class Hops:
    """Appends to `report`. `master`: the store that the page is written to, host:port."""

    def __init__(
        self,
        report: Report,
        page: Page,
        objects: StoreObject,
        admin: Objects | None,
        master: str,
    ) -> None:
        self._report = report
        self._page = page
        self._objects = objects
        self._admin = admin
        self._master = master
        self._sums = page.sums()
        self._have_read: set[str] = set()

    async def write(self) -> bool:
        """The page into the store; is it there for engines to read?"""
        for step, name in (*WRITE_STEPS.items(), ("read", READ_BACK)):
            done = await self._objects.step()
            self._row(name, "write", step if done.error else "", done.error, done.seconds)
            if done.error and step != "read":
                return False
        await self._ask_admin()
        return True

    async def to_engines(self, engines: Sequence[tuple[EngineDoor, Mapping[str, Any]]]) -> None:
        """Each engine reads the page from the store by its own client."""
        for door, facts in engines:
            step, why, seconds = await self._probe(door, "store", name=self._page.name)
            if step and (other := facts["store"]["master"]) != self._master:
                why += f"; it uses the master {other}, the page was written through {self._master}"
            self._row(f"store -> {door.part.name}", "store", step, why, seconds)
            if not step:
                self._have_read.add(door.part.name)

    def not_written(self, doors: Sequence[EngineDoor]) -> None:
        for door in doors:
            self._add(f"store -> {door.part.name}", "NOT RUN", "the page could not be written")

    async def pairs(
        self,
        prefills: Sequence[EngineDoor],
        decodes: Sequence[tuple[EngineDoor, tuple[str, ...]]],
    ) -> None:
        """Each prefill engine pulls the page out of each decode engine's memory. Where D cannot
        read it from the store it makes the bytes itself, so that the rest of the way is known."""
        for decode, exports in decodes:
            for prefill in prefills:
                await self._pair(prefill, decode, exports)
            for prefill in prefills:
                self._add(f"{prefill.part.name} -> {decode.part.name}", "NOT RUN", NOT_PROBED)

    async def release(self, decodes: Sequence[EngineDoor]) -> None:
        """Scratch pages are needed no longer; an engine that is gone has none."""
        for door in decodes:
            with contextlib.suppress(EngineFailure):
                await door.release()

    async def remove(self) -> None:
        """The objects are gone afterwards: as their writer says, and as the master says."""
        step = await self._objects.remove()
        error = step.error
        if not error and self._admin is not None:
            try:
                left = sum(await self._admin.exist(self._page.keys))
                error = f"{left} objects are still listed" if left else ""
            except StoreFailure as failure:
                error = failure.message
        why = f"{error}; left may be: {', '.join(self._page.keys)}" if error else ""
        fix = "remove them by hand, or leave them to eviction: nothing reads them" if why else ""
        status: Status = "BROKEN" if why else "OK"
        self._report.hops.append(Hop("remove from the store", status, why, fix, step.seconds))

    async def _ask_admin(self) -> None:
        """As the router asks what is stored."""
        name = "find by the master's HTTP port"
        if self._admin is None:
            self._add(name, "NOT RUN", "its address is not known here (--store-admin)")
            return
        try:
            found = await self._admin.exist(self._page.keys)
            missing = len(found) - sum(found)
            why = f"{missing} of {len(found)} objects are not listed" if missing else ""
        except StoreFailure as error:
            why = error.message
        self._row(name, "write", "admin" if why else "", why, 0.0)

    async def _pair(
        self, prefill: EngineDoor, decode: EngineDoor, exports: tuple[str, ...]
    ) -> None:
        source: Source = "store" if decode.part.name in self._have_read else "seed"
        name = f"{decode.part.name} -> {prefill.part.name}"
        if source == "store":
            name = f"store -> {name}"
        try:
            made = await decode.probe(source, name=self._page.name)
            if made.state != "done":
                self._row(name, "peer", made.step, f"{decode.part.name}: {made.error}", 0.0)
                return
            if not exports:
                self._row(name, "peer", "connect", f"{decode.part.name} exports nothing", 0.0)
                return
            step, why, seconds = await self._probe(prefill, "peer", peer=exports[0], slot=made.slot)
            self._row(name, "peer", step, why, seconds)
        except EngineFailure as error:
            self._row(name, "peer", "door", error.message, 0.0)

    async def _probe(self, door: EngineDoor, source: Source, **what: Any) -> tuple[str, str, float]:
        """What failed (empty: nothing), why, and how long it took."""
        try:
            result = await door.probe(source, **what)
        except EngineFailure as error:
            return "door", error.message, 0.0
        if result.state != "done":
            return result.step, result.error, result.seconds
        if wrong := self._wrong(result):
            return "content", wrong, result.seconds
        return "", "", result.seconds

    def _wrong(self, result: ProbeResult) -> str:
        if result.sums == self._sums:
            return ""
        if len(result.sums) != len(self._sums):
            return f"{len(result.sums)} parts of a page instead of {len(self._sums)}"
        names = ("K", "V") if len(self._sums) == 2 else ("the page",) * len(self._sums)
        pairs = zip(names, result.sums, self._sums, strict=True)
        bad = [name for name, got, wanted in pairs if got != wanted]
        return f"other bytes arrived in {' and '.join(bad)}"

    def _row(self, name: str, way: Way, step: str, why: str, seconds: float) -> None:
        """OK when no step failed."""
        if not step:
            self._report.hops.append(Hop(name, "OK", seconds=seconds))
        else:
            fix = likely_fix(way, step)
            self._report.hops.append(Hop(name, "BROKEN", why, fix, seconds))

    def _add(self, name: str, status: Status, why: str) -> None:
        self._report.hops.append(Hop(name, status, why))
