"""Where sessions live on. One writer: the router that opened the store.

The order that keeps turns atomic: `append` returns only when the turn would survive a crash of the
router; only then does the turn join the history in memory.
"""

from __future__ import annotations

from typing import Protocol

from agent_runtime.trajectory.model import SessionHead, SessionName, StoredSession, TurnRecord


class SessionStore(Protocol):
    """All methods may be called from one event loop at once; none blocks it.

    A failing store raises Internal; nothing of the call is kept then.
    """

    async def open(self) -> None:
        """Raises StartupError when the store cannot be used."""
        ...

    async def close(self) -> None:
        """Waits for the writes under way."""
        ...

    async def count(self) -> int: ...

    async def create(self, head: SessionHead) -> bool:
        """False when the id is taken."""
        ...

    async def load(self, name: SessionName) -> StoredSession | None: ...

    async def append(self, name: SessionName, record: TurnRecord) -> None:
        """Adds turn number `record.turn`. Costs what the turn appended, not the history."""
        ...

    async def find(self, name: SessionName, idempotency_key: str) -> TurnRecord | None: ...

    async def delete(self, name: SessionName) -> bool:
        """False when there is none."""
        ...
