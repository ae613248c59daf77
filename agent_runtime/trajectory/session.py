"""One session in memory: its exact token history and who is using it.

                  claim                commit
    (idle) ───────────────▶ (busy) ──────────────▶ (idle), one turn longer
                               │    release
                               └─────────────────▶ (idle), as before

Only `commit` changes the history, and only by a whole turn.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass

from agent_runtime.trajectory.chat import ChatNode, extend
from agent_runtime.trajectory.model import SessionHead, StoredSession, TurnRecord
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.errors import BadRequest, Conflict, DualPathError, Saturated
from dualpath_sglang.contract.pages import PageHasher


@dataclass(frozen=True)
class _Boundary:
    """The end of a turn that is still whole in the history."""

    end: int
    turn: int


class Session:
    def __init__(self, head: SessionHead) -> None:
        self.head = head
        self.tokens: array[int] = pack()
        self.turns = 0
        self.deleted = False
        self.ended = False
        self.pages: PageHasher | None = None
        """Page hashes of the history so far, made by the planner; never of what may be undone."""
        self._boundaries: list[_Boundary] = []
        self._chats: dict[int, ChatNode] = {}
        self._task: asyncio.Task[object] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    def from_stored(cls, stored: StoredSession) -> Session:
        session = cls(stored.head)
        for record in stored.turns:
            session.commit(record)
        return session

    @property
    def busy(self) -> bool:
        return self._task is not None

    def claim(self) -> None:
        """The current task becomes the only one that may add a turn. Raises Conflict, Saturated."""
        if (gone := self.gone()) is not None:
            raise gone
        if self.busy:
            raise Conflict(
                f"session {self.head.id!r} is busy with turn {self.turns}: wait for its end"
            )
        self._task = asyncio.current_task()
        self._idle.clear()

    def release(self) -> None:
        self._task = None
        self._idle.set()

    def gone(self) -> DualPathError | None:
        """Why there will be no more turns here; null: there may be."""
        if self.deleted:
            return Conflict(f"session {self.head.id!r} was deleted")
        return Saturated("the router is stopping: send the turn again") if self.ended else None

    async def end(self) -> None:
        """Cancels the turn under way and waits until it is gone; no other starts here."""
        self.ended = True
        if self._task is not None:
            self._task.cancel()
        await self._idle.wait()

    def kept(self, keep: int | None) -> int:
        """How many history tokens stay. Raises BadRequest."""
        if keep is None:
            return len(self.tokens)
        if not 0 <= keep <= len(self.tokens):
            raise BadRequest(
                f"keep is {keep}, the history has {len(self.tokens)} tokens: "
                f"give a number from 0 to {len(self.tokens)}",
                field="keep",
            )
        return keep

    def chat_turn_at(self, kept: int) -> int | None:
        """The turn whose conversation goes on after `kept` tokens; null: a new one starts.

        Raises BadRequest where `kept` cuts through a turn: the messages that a part of a turn
        stands for are unknown.
        """
        if kept == 0:
            return None
        for boundary in reversed(self._boundaries):
            if boundary.end == kept:
                return boundary.turn if boundary.turn in self._chats else None
        near = min((b.end for b in self._boundaries), key=lambda end: abs(end - kept), default=0)
        raise BadRequest(
            f"keep is {kept}, which is inside a turn: with messages keep whole turns "
            f"(nearest end of a turn: {near}), or append token_ids",
            field="keep",
        )

    def chat_of(self, turn: int | None) -> ChatNode | None:
        return None if turn is None else self._chats[turn]

    def commit(self, record: TurnRecord) -> None:
        """Adds a finished turn that is already in the store."""
        assert record.turn == self.turns
        if record.chat is not None:
            before = self.chat_of(record.chat.after)
            self._chats[record.turn] = extend(before, record.kept, record.chat, record.output)
        if self.pages is not None:
            self.pages.keep(record.kept)
        del self.tokens[record.kept :]
        self.tokens += record.input
        self.tokens += record.output
        self._boundaries = [b for b in self._boundaries if b.end <= record.kept]
        self._boundaries.append(_Boundary(len(self.tokens), record.turn))
        self.turns += 1
