"""The page hashes of one prompt, made as they are asked for.

    history, as far as it is kept          what the turn appends
    |--- page | page | page | pa|ge --- page | last token's page
    the session's own hashes      hashed here, at the first question

A turn hashes what the last one added and what this one appends, however long the history is.
"""

from __future__ import annotations

from array import array
from typing import Protocol

from agent_runtime.trajectory.session import Session
from dualpath_sglang.contract.pages import PageHasher


class Chain(Protocol):
    """`kept`: leading pages that were part of the session before this turn."""

    kept: int

    def __len__(self) -> int: ...

    def hashes(self, first: int, last: int) -> list[str]:
        """Of the pages [first, last)."""
        ...


class PromptChain:
    """All pages that can be loaded: the full ones but the last token's."""

    def __init__(self, history: PageHasher, kept_tokens: int, prompt: array[int]) -> None:
        page = history.page_size
        self._history, self._prompt = history, prompt
        self._pages = max(0, len(prompt) - 1) // page
        self.kept = min(kept_tokens // page, history.pages, self._pages)
        self._appended: list[str] | None = None

    def __len__(self) -> int:
        return self._pages

    def hashes(self, first: int, last: int) -> list[str]:
        found = self._history.hashes(first, min(last, self.kept))
        if last <= self.kept:
            return found
        if self._appended is None:
            # The turn may fail, so this is hashed beside the history and not into it.
            self._appended = self._history.following(self._prompt, self.kept, self._pages)
        return found + self._appended[max(0, first - self.kept) : last - self.kept]


def prompt_chain(session: Session, kept: int, prompt: array[int], page_size: int) -> PromptChain:
    """`prompt` is `session.tokens[:kept]` and what the turn appends."""
    if session.pages is None or session.pages.page_size != page_size:
        session.pages = PageHasher(page_size)
    session.pages.extend(session.tokens)
    return PromptChain(session.pages, kept, prompt)
