"""Sessions in one SQLite file: a row per session, an append-only row per turn.

All statements run in one thread, so the event loop never waits for the disk. WAL with
`synchronous=NORMAL`: a committed turn survives kill -9 of the router.
"""

from __future__ import annotations

import asyncio
import sqlite3
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

import orjson

from agent_runtime.trajectory.model import (
    ChatPart,
    PlacementRecord,
    SessionHead,
    StoredSession,
    Tiers,
    Timing,
    TurnRecord,
    Usage,
)
from agent_runtime.trajectory.tokens import from_bytes, to_bytes
from dualpath_sglang.contract.errors import Internal, StartupError
from dualpath_sglang.contract.ids import SessionId

VERSION = 1
SCHEMA = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, created_at REAL NOT NULL, metadata BLOB NOT NULL);
CREATE TABLE turns (
  session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  turn INTEGER NOT NULL, kept INTEGER NOT NULL,
  input BLOB NOT NULL, output BLOB NOT NULL, record BLOB NOT NULL,
  idempotency_key TEXT, digest TEXT NOT NULL,
  PRIMARY KEY (session_id, turn)
);
CREATE UNIQUE INDEX turns_by_key ON turns (session_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
"""
_COLUMNS = "turn, kept, input, output, record, idempotency_key, digest"

T = TypeVar("T")


class SqliteStore:
    """A `SessionStore`. `path` may be `:memory:`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._connection = await loop.run_in_executor(self._thread, self._connect)
        except (sqlite3.Error, StartupError) as error:
            self._thread.shutdown()
            if isinstance(error, StartupError):
                raise
            locked = "locked" in str(error)
            hint = "another router uses it" if locked else "choose another `database`"
            raise StartupError(
                f"cannot open the session database {self._path}: {error} ({hint})",
                field="database",
            ) from error

    async def close(self) -> None:
        if self._connection is not None:
            await self._run(lambda db: db.close())
            self._connection = None
        self._thread.shutdown(wait=True)

    async def count(self) -> int:
        rows = await self._run(lambda db: db.execute("SELECT count(*) FROM sessions").fetchall())
        return int(rows[0][0])

    async def create(self, head: SessionHead) -> bool:
        row = (head.id, head.created_at, orjson.dumps(dict(head.metadata)))
        statement = "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?)"
        return await self._run(lambda db: db.execute(statement, row).rowcount) == 1

    async def load(self, session_id: SessionId) -> StoredSession | None:
        return await self._run(lambda db: _load(db, session_id))

    async def append(self, session_id: SessionId, record: TurnRecord) -> None:
        row = _to_row(session_id, record)
        statement = f"INSERT INTO turns (session_id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        await self._run(lambda db: db.execute(statement, row).rowcount)

    async def find(self, session_id: SessionId, idempotency_key: str) -> TurnRecord | None:
        statement = f"SELECT {_COLUMNS} FROM turns WHERE session_id = ? AND idempotency_key = ?"
        rows = await self._run(
            lambda db: db.execute(statement, (session_id, idempotency_key)).fetchall()
        )
        return _from_row(rows[0]) if rows else None

    async def delete(self, session_id: SessionId) -> bool:
        statement = "DELETE FROM sessions WHERE id = ?"
        return await self._run(lambda db: db.execute(statement, (session_id,)).rowcount) == 1

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in the store's thread; each call is one transaction of its own."""
        connection = self._connection
        if connection is None:
            raise Internal("the session store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, connection)
        except sqlite3.Error as error:
            raise Internal(f"the session store failed: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        try:
            _prepare(db, self._path)
        except BaseException:
            db.close()
            raise
        return db


def _prepare(db: sqlite3.Connection, path: str) -> None:
    # A second router on the same file would not see this one's sessions in memory.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("BEGIN EXCLUSIVE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    db.execute("COMMIT")
    if version == 0:
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION:
        raise StartupError(
            f"{path} has schema version {version}, this router writes {VERSION}: "
            "choose another `database`",
            field="database",
        )


def _load(db: sqlite3.Connection, session_id: SessionId) -> StoredSession | None:
    found = db.execute(
        "SELECT created_at, metadata FROM sessions WHERE id = ?", (session_id,)
    ).fetchone()
    if found is None:
        return None
    head = SessionHead(session_id, found[0], orjson.loads(found[1]))
    turns = db.execute(
        f"SELECT {_COLUMNS} FROM turns WHERE session_id = ? ORDER BY turn", (session_id,)
    )
    return StoredSession(head, tuple(_from_row(row) for row in turns))


def _to_row(session_id: SessionId, record: TurnRecord) -> tuple[Any, ...]:
    rest = {
        "text": record.text,
        "finish_reason": record.finish_reason,
        "matched": record.matched,
        "usage": asdict(record.usage),
        "placement": asdict(record.placement),
        "timing": asdict(record.timing),
        "chat": None if record.chat is None else asdict(record.chat),
    }
    return (
        session_id,
        record.turn,
        record.kept,
        to_bytes(record.input),
        to_bytes(record.output),
        orjson.dumps(rest),
        record.idempotency_key,
        record.digest,
    )


def _from_row(row: tuple[Any, ...]) -> TurnRecord:
    turn, kept, given, generated, data, key, digest = row
    rest = orjson.loads(data)
    tokens: tuple[array[int], array[int]] = (from_bytes(given), from_bytes(generated))
    return TurnRecord(
        turn=turn,
        kept=kept,
        input=tokens[0],
        output=tokens[1],
        text=rest["text"],
        finish_reason=rest["finish_reason"],
        matched=rest.get("matched"),
        usage=_usage(rest["usage"]),
        placement=PlacementRecord(**rest["placement"]),
        timing=Timing(**rest["timing"]),
        chat=_chat(rest["chat"]),
        idempotency_key=key,
        digest=digest,
    )


def _usage(data: dict[str, Any]) -> Usage:
    decode = None if data["decode"] is None else Tiers(**data["decode"])
    return Usage(**(data | {"prefill": Tiers(**data["prefill"]), "decode": decode}))


def _chat(data: dict[str, Any] | None) -> ChatPart | None:
    if data is None:
        return None
    return ChatPart(**(data | {"messages": tuple(data["messages"])}))
