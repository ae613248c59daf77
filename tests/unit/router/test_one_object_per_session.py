"""A session is one object, however many are loaded beside it: two would be two histories."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from agent_runtime.owners import ANONYMOUS
from agent_runtime.trajectory.model import (
    PlacementRecord,
    SessionHead,
    SessionName,
    StoredSession,
    Tiers,
    Timing,
    TurnRecord,
    Usage,
)
from agent_runtime.trajectory.sessions import Sessions
from agent_runtime.trajectory.sqlite_store import SqliteStore
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.errors import Conflict, Internal, NotFound
from dualpath_sglang.contract.ids import SessionId

A, B = SessionId("a"), SessionId("b")


def sessions_over(store: SqliteStore, *, max_loaded: int = 1) -> Sessions:
    return Sessions(store, max_sessions=100, max_loaded=max_loaded, wall_time=lambda: 0.0)


def turn(number: int, *tokens: int) -> TurnRecord:
    return TurnRecord(
        turn=number,
        kept=0,
        input=pack(tokens),
        output=pack(),
        text="",
        finish_reason="stop",
        usage=Usage(len(tokens), 0, 0, Tiers(), None),
        placement=PlacementRecord("p", "d", None, ""),
        timing=Timing(0.0, None, 0.0),
    )


async def test_a_session_that_someone_holds_is_never_loaded_twice() -> None:
    sessions = sessions_over(SqliteStore(":memory:"))
    await sessions.open()
    held = await sessions.create(ANONYMOUS, A, {})
    await sessions.create(ANONYMOUS, B, {})  # only one stays in memory
    assert await sessions.get(ANONYMOUS, A) is held
    await sessions.close()


async def test_an_idle_session_leaves_memory_and_comes_back_whole(tmp_path: Path) -> None:
    sessions = sessions_over(SqliteStore(str(tmp_path / "db")))
    await sessions.open()
    await sessions.commit(await sessions.create(ANONYMOUS, A, {"k": 1}), turn(0, 1, 2, 3))
    await sessions.create(ANONYMOUS, B, {})
    gc.collect()
    assert SessionName(ANONYMOUS, A) not in sessions._alive
    again = await sessions.get(ANONYMOUS, A)
    assert (again.turns, again.tokens.tolist(), again.head.metadata) == (1, [1, 2, 3], {"k": 1})
    await sessions.close()


async def test_many_loads_at_once_give_one_object(tmp_path: Path) -> None:
    sessions = sessions_over(SqliteStore(str(tmp_path / "db")))
    await sessions.open()
    await sessions.create(ANONYMOUS, A, {})
    await sessions.create(ANONYMOUS, B, {})
    gc.collect()
    loaded = await asyncio.gather(*(sessions.get(ANONYMOUS, A) for _ in range(8)))
    assert len({id(session) for session in loaded}) == 1
    await sessions.close()


class SlowCreate(SqliteStore):
    """Stub: a row is readable before `create` has returned, as with a busy event loop."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.written, self.go_on = asyncio.Event(), asyncio.Event()

    async def create(self, head: SessionHead) -> bool:
        created = await super().create(head)
        self.written.set()
        await self.go_on.wait()
        return created


async def test_a_session_read_while_it_is_created_is_the_one_created() -> None:
    store = SlowCreate()
    sessions = sessions_over(store)
    await sessions.open()
    creating = asyncio.create_task(sessions.create(ANONYMOUS, A, {}))
    await store.written.wait()
    read = await sessions.get(ANONYMOUS, A)
    store.go_on.set()
    assert await creating is read
    await sessions.close()


class FailingDelete(SqliteStore):
    """Stub: the disk refuses the first delete."""

    failures = 1

    async def delete(self, name: SessionName) -> bool:
        if self.failures:
            self.failures -= 1
            raise Internal("disk full (stub)")
        return await super().delete(name)


async def test_a_delete_that_failed_leaves_the_session_usable() -> None:
    sessions = sessions_over(FailingDelete(":memory:"), max_loaded=9)
    await sessions.open()
    await sessions.commit(await sessions.create(ANONYMOUS, A, {}), turn(0, 7))
    with pytest.raises(Internal, match="disk full"):
        await sessions.delete(ANONYMOUS, A)
    assert (await sessions.get(ANONYMOUS, A)).tokens.tolist() == [7]
    await sessions.delete(ANONYMOUS, A)
    with pytest.raises(NotFound):
        await sessions.get(ANONYMOUS, A)
    assert sessions.count == 0
    await sessions.close()


async def test_a_taken_id_is_a_conflict_and_is_not_counted(tmp_path: Path) -> None:
    sessions = sessions_over(SqliteStore(str(tmp_path / "db")))
    await sessions.open()
    first = await sessions.create(ANONYMOUS, A, {})
    with pytest.raises(Conflict, match="exists"):
        await sessions.create(ANONYMOUS, A, {})
    assert (await sessions.get(ANONYMOUS, A), sessions.count) == (first, 1)
    await sessions.close()


def test_a_stored_session_is_its_turns_in_order() -> None:
    from agent_runtime.trajectory.session import Session

    records = (turn(0, 1, 2), turn(1, 9))
    session = Session.from_stored(StoredSession(SessionHead(A, 0.0, {}), records))
    assert (session.turns, session.tokens.tolist()) == (2, [9])
