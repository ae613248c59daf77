"""The requests that this engine follows: their plan, and what became of their load."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_sglang.contract.plan import Plan
from dualpath_sglang.secondpath.load import Key
from dualpath_sglang.sglang_types import Handle, Req

KEEP_S = 900.0
"""A request can end without passing any of our hooks; its entry goes then."""


@dataclass
class LoadReport:
    """Tokens and bytes that one request's load brought in, by source. split_pages: the plan's k.
    load_s: from its first page asked for to its last. fallback: why it was not as planned."""

    peer_tokens: int = 0
    store_tokens: int = 0
    peer_bytes: int = 0
    store_bytes: int = 0
    plan_id: str = ""
    split_pages: int = 0
    load_s: float = 0.0
    fallback: str = ""


@dataclass
class Followed:
    """One request. key and plan: none for one without a plan. settled: its load is over, or will
    not be tried (again). next_try: when it may be asked for again, monotonic seconds."""

    req: Req | None
    handle: Handle
    room: int
    since: float
    key: Key | None
    plan: Plan | None
    report: LoadReport
    settled: bool = False
    next_try: float = float("inf")

    @property
    def live(self) -> Req:
        """The request, until it is settled."""
        assert self.req is not None
        return self.req

    @property
    def give_up_at(self) -> float:
        """The plan's own deadline, monotonic seconds."""
        return self.since + self.plan.deadline_ms / 1000 if self.plan else float("inf")


class Requests:
    """By cache handle. Scheduler thread only."""

    def __init__(self) -> None:
        self._followed: dict[Handle, Followed] = {}
        self._unsettled: dict[Handle, Followed] = {}

    def follow(
        self, req: Req | None, handle: Handle, room: int, plan: Plan | None, now: float
    ) -> Followed:
        report = LoadReport()
        if plan is not None:
            report.plan_id, report.split_pages = plan.plan_id, plan.k
        key = (room, plan.plan_id) if plan is not None else None
        entry = Followed(req, handle, room, now, key, plan, report)
        self._followed[handle] = entry
        if plan is not None:
            self._unsettled[handle] = entry
        return entry

    def settle(self, entry: Followed) -> None:
        """Its load has come to an end, or will not be tried (again)."""
        entry.settled = True
        entry.req = None
        self._unsettled.pop(entry.handle, None)

    def get(self, handle: Handle) -> Followed | None:
        return self._followed.get(handle)

    def drop(self, handle: Handle) -> None:
        """Nobody asks for it again."""
        entry = self._followed.pop(handle, None)
        if entry is not None:
            self.settle(entry)

    def unsettled(self) -> list[Followed]:
        """Planned requests whose load has not come to an end."""
        return list(self._unsettled.values())

    def expire(self, now: float) -> list[Handle]:
        """Handles of those that are let go; oldest first, as entries are kept."""
        late = []
        for entry in self._followed.values():
            if now - entry.since <= KEEP_S:
                break
            late.append(entry.handle)
        for handle in late:
            self.drop(handle)
        return late

    def __contains__(self, handle: Handle) -> bool:
        """Is it followed, with a plan whose load is still to come?"""
        return handle in self._unsettled

    def __len__(self) -> int:
        return len(self._followed)
