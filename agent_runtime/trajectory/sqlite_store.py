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
    SessionName,
    StoredSession,
    Tiers,
    Timing,
    TurnRecord,
    Usage,
)
from agent_runtime.trajectory.tokens import from_bytes, to_bytes
from dualpath_sglang.contract.errors import Internal, StartupError

VERSION = 2
SCHEMA = """
CREATE TABLE sessions (
  owner TEXT NOT NULL, id TEXT NOT NULL, created_at REAL NOT NULL, metadata BLOB NOT NULL,
  PRIMARY KEY (owner, id)
);
CREATE TABLE turns (
  owner TEXT NOT NULL, session_id TEXT NOT NULL,
  turn INTEGER NOT NULL, kept INTEGER NOT NULL,
  input BLOB NOT NULL, output BLOB NOT NULL, record BLOB NOT NULL,
  idempotency_key TEXT, digest TEXT NOT NULL,
  PRIMARY KEY (owner, session_id, turn),
  FOREIGN KEY (owner, session_id) REFERENCES sessions(owner, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX turns_by_key ON turns (owner, session_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
"""
FROM_1 = f"""
DROP INDEX turns_by_key;
ALTER TABLE turns RENAME TO turns_1;
ALTER TABLE sessions RENAME TO sessions_1;
{SCHEMA}
INSERT INTO sessions SELECT '', id, created_at, metadata FROM sessions_1;
INSERT INTO turns SELECT '', session_id, turn, kept, input, output, record, idempotency_key, digest
  FROM turns_1;
DROP TABLE turns_1;
DROP TABLE sessions_1;
"""
"""Sessions had no owners: they are those of nobody in particular."""
_OF_ONE = "owner = ? AND session_id = ?"
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
        row = (head.owner, head.id, head.created_at, orjson.dumps(dict(head.metadata)))
        statement = "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?)"
        return await self._run(lambda db: db.execute(statement, row).rowcount) == 1

    async def load(self, name: SessionName) -> StoredSession | None:
        return await self._run(lambda db: _load(db, name))

    async def append(self, name: SessionName, record: TurnRecord) -> None:
        row = _to_row(name, record)
        places = ", ".join("?" * len(row))
        statement = f"INSERT INTO turns (owner, session_id, {_COLUMNS}) VALUES ({places})"
        await self._run(lambda db: db.execute(statement, row).rowcount)

    async def find(self, name: SessionName, idempotency_key: str) -> TurnRecord | None:
        statement = f"SELECT {_COLUMNS} FROM turns WHERE {_OF_ONE} AND idempotency_key = ?"
        rows = await self._run(
            lambda db: db.execute(statement, (*name, idempotency_key)).fetchall()
        )
        return _from_row(rows[0]) if rows else None

    async def delete(self, name: SessionName) -> bool:
        statement = "DELETE FROM sessions WHERE owner = ? AND id = ?"
        return await self._run(lambda db: db.execute(statement, name).rowcount) == 1

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
    script = {0: SCHEMA, 1: FROM_1}.get(version)
    if script is not None:
        db.executescript(f"BEGIN; {script} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION:
        raise StartupError(
            f"{path} has schema version {version}, this router writes {VERSION}: "
            "choose another `database`",
            field="database",
        )


def _load(db: sqlite3.Connection, name: SessionName) -> StoredSession | None:
    found = db.execute(
        "SELECT created_at, metadata FROM sessions WHERE owner = ? AND id = ?", name
    ).fetchone()
    if found is None:
        return None
    head = SessionHead(name.id, found[0], orjson.loads(found[1]), name.owner)
    turns = db.execute(f"SELECT {_COLUMNS} FROM turns WHERE {_OF_ONE} ORDER BY turn", name)
    return StoredSession(head, tuple(_from_row(row) for row in turns))


def _to_row(name: SessionName, record: TurnRecord) -> tuple[Any, ...]:
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
        *name,
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
