"""The output of one turn as it grows: token ids, their text, and why it ended.

Text comes from the token ids (`text`), cut at stop strings (`stops`), token by token, so that
neither depends on how an engine cuts its stream. Where this model's tokenizer is not on this
machine, the engine's own text stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent_runtime.dispatch.engine_client import Chunk
from agent_runtime.dispatch.stops import Stops, StopWatch
from agent_runtime.dispatch.text import OutputText


@dataclass(frozen=True)
class Finish:
    """`type` is SGLang's (stop, length), or `partial` for a turn that was cut short; `matched`:
    the token id, stop string or pattern that ended it."""

    type: str
    matched: int | str | None = None


class Output:
    """Feed it an engine's chunks until one ends it or `finish` is set: then a stop was seen here
    and the engine need not go on."""

    def __init__(self, text: OutputText | None, stops: Stops) -> None:
        self._text = text
        self._watch = StopWatch(stops)
        self._trim = stops.trim
        self.finish: Finish | None = None

    def take(self, chunk: Chunk) -> tuple[list[int], str]:
        """The new tokens, up to the one with which a stop was complete, and the new text."""
        ended = _finish(chunk.finish_reason)
        if self._text is None:
            return self._take_text(chunk, ended)
        pieces: list[str] = []
        silent = self._trim and ended is not None and isinstance(ended.matched, int)
        for count, token_id in enumerate(chunk.token_ids, 1):
            if not (silent and count == len(chunk.token_ids)):  # a stop token is no text
                pieces.append(self._watch.push(self._text.push(token_id)))
            if self._stopped():
                return chunk.token_ids[:count], "".join(pieces)
        if ended is not None:
            pieces.append(self._watch.push(self._text.finish()))
            if not self._stopped():
                pieces.append(self._watch.finish())
                self.finish = ended
        return chunk.token_ids, "".join(pieces)

    def rest(self) -> str:
        """The text that a turn which is cut short here still owes its token ids."""
        if self.finish is not None:
            return ""
        text = "" if self._text is None else self._watch.push(self._text.finish())
        return text + self._watch.finish()

    def _take_text(self, chunk: Chunk, ended: Finish | None) -> tuple[list[int], str]:
        text = self._watch.push(chunk.text)
        if not self._stopped() and ended is not None:
            # An engine leaves its stop string out, but may have sent how it begins.
            held, matched = self._watch.finish(), ended.matched
            begun = self._trim and isinstance(matched, str) and matched.startswith(held)
            text += "" if begun else held
            self.finish = ended
        return chunk.token_ids, text

    def _stopped(self) -> bool:
        if self._watch.matched is not None:
            self.finish = Finish("stop", self._watch.matched)
        return self.finish is not None


def _finish(reason: dict[str, Any] | None) -> Finish | None:
    if reason is None:
        return None
    matched = reason.get("matched")
    return Finish(str(reason["type"]), matched if isinstance(matched, int | str) else None)
