"""All sessions: the single owner of those in memory, in front of the store."""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from agent_runtime.trajectory.model import SessionHead, SessionName, TurnRecord
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.store import SessionStore
from dualpath_sglang.contract.errors import Conflict, NotFound, Saturated
from dualpath_sglang.contract.ids import OwnerId, SessionId


class Sessions:
    """The `max_loaded` sessions used last stay in memory, and all that someone still holds.

    There is never a second object of one session, which would be a second history: `_alive` finds
    the first as long as anyone has it, however many were loaded since.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        max_sessions: int,
        max_loaded: int,
        wall_time: Callable[[], float],
    ) -> None:
        self._store = store
        self._max_sessions = max_sessions
        self._max_loaded = max_loaded
        self._wall_time = wall_time
        self._alive = weakref.WeakValueDictionary[SessionName, Session]()
        self._recent: OrderedDict[SessionName, Session] = OrderedDict()
        self._loading: dict[SessionName, asyncio.Task[Session | None]] = {}
        self.count = 0

    async def open(self) -> None:
        await self._store.open()
        self.count = await self._store.count()

    async def close(self) -> None:
        """Ends the turns under way, then the store."""
        for session in list(self._alive.values()):
            await session.end()
        await self._store.close()

    async def create(
        self, owner: OwnerId, session_id: SessionId | None, metadata: Mapping[str, Any]
    ) -> Session:
        """Raises Conflict for an id that is taken, Saturated at the limit of sessions."""
        if self.count >= self._max_sessions:
            raise Saturated(
                f"{self.count} sessions exist, the limit is max_sessions={self._max_sessions}: "
                "delete some"
            )
        chosen = session_id or SessionId("s-" + secrets.token_hex(16))
        session = Session(SessionHead(chosen, self._wall_time(), dict(metadata), owner))
        self.count += 1
        created = False
        try:
            created = await self._store.create(session.head)
        finally:
            self.count -= not created
        if not created:
            raise Conflict(f"session {chosen!r} exists: choose another id", field="session_id")
        return self._keep(session)

    async def get(self, owner: OwnerId, session_id: SessionId) -> Session:
        """Raises NotFound, also for a session of somebody else."""
        name = SessionName(owner, session_id)
        session = self._alive.get(name) or await self._load(name)
        if session is None or session.deleted:
            raise NotFound(f"there is no session {session_id!r}: create it first")
        return self._keep(session)

    async def delete(self, owner: OwnerId, session_id: SessionId) -> None:
        """A turn under way is cancelled first. Raises NotFound."""
        session = await self.get(owner, session_id)
        name = session.head.name
        session.deleted = True
        await session.end()
        try:
            if await self._store.delete(name):
                self.count -= 1
        finally:
            # Also when the store failed: the next `get` finds out what is true.
            self._alive.pop(name, None)
            self._recent.pop(name, None)

    async def find(self, session: Session, idempotency_key: str) -> TurnRecord | None:
        return await self._store.find(session.head.name, idempotency_key)

    async def commit(self, session: Session, record: TurnRecord) -> None:
        """First the store, then the history: a turn that is not durable never happened."""
        await self._store.append(session.head.name, record)
        session.commit(record)

    async def _load(self, name: SessionName) -> Session | None:
        # One load per session at a time: two would make two histories.
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(self._read(name))
            self._loading[name] = task
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return await asyncio.shield(task)

    async def _read(self, name: SessionName) -> Session | None:
        stored = await self._store.load(name)
        if stored is None:
            return None
        return self._keep(Session.from_stored(stored))

    def _keep(self, session: Session) -> Session:
        """`session`, or the one that came to life while it was being loaded; used just now."""
        session = self._alive.setdefault(session.head.name, session)
        self._recent[session.head.name] = session
        self._recent.move_to_end(session.head.name)
        while len(self._recent) > self._max_loaded:
            self._recent.popitem(last=False)
        return session
