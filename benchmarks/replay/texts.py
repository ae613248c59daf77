"""Recorded text as tokens of the served model.

Every tokenizer gives a text another length, so sizes are no longer those of the trace: they are
reported beside them. What sessions have in common in text they have in common in tokens. Each
message is its own text, without a chat template; a string that looks like a special token of the
model is plain text.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.replay.scale import check_factor, check_size, scaled, scaled_output
from benchmarks.replay.trace import Session, TextTokens, TraceError, Turn
from dualpath_sglang.contract.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"


def has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER_FILE).is_file()


class Texts:
    """`tokenizer.json` of a model folder. Raises ConfigError where there is none."""

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER_FILE
        if not has_tokenizer(folder):
            raise ConfigError(
                f"text needs {path}, which does not exist: use --tokens counts", field="tokens"
            )
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower one
            raise ConfigError(f"{path} is no tokenizer: {error}", field="model_path") from error
        self._tokenizer.encode_special_tokens = True

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def sized(self, session: Session, factor: float, required: bool = False) -> Session:
        """The session with its texts as tokens, of each the head of `factor` (at most 1) times
        its length.

        A turn without text keeps to its count; with `required` it is a TraceError. Where the
        client rewrote its context, keep is found part by part: what was kept of the recorded
        appends and outputs is kept of those that took their place.
        """
        check_factor(factor)
        turns: list[Turn] = []
        context = _Context()
        for index, turn in enumerate(session.turns):
            text = self._head(turn, factor)
            if text is None and required:
                raise TraceError(
                    f"{session.where or session.sid}: turns[{index}]: has no text (append_text or "
                    "append_msgs): use --tokens counts",
                    field="tokens",
                )
            append = scaled(turn.append, factor) if text is None else len(text.ids)
            keep = context.cut(turn.keep)
            out, out_kept = scaled_output(turn, factor)
            check_size(session, index, keep + append + out, factor)
            if keep + append == 0:
                raise TraceError(
                    f"{session.where}: turns[{index}]: its texts are empty, and it keeps nothing",
                    field="tokens",
                )
            context.add(turn.append, append)
            context.add(turn.out_kept, out_kept)
            sizes = replace(turn, keep=keep, append=append, out=out, out_kept=out_kept)
            turns.append(replace(sizes, texts=None, text=text))
        return replace(session, turns=tuple(turns), factor=session.factor * factor)

    def _head(self, turn: Turn, factor: float) -> TextTokens | None:
        if turn.texts is None:
            return None
        whole = self.ids(turn.texts)
        heads = array("I")
        for ids in whole:
            heads.extend(ids[: scaled(len(ids), factor)])
        return TextTokens(heads, sum(map(len, whole)), turn.append)


class _Context:
    """The parts of a context: for each how long it was recorded, and how long it is."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []

    def add(self, recorded: int, actual: int) -> None:
        self._parts.append((recorded, actual))

    def cut(self, recorded: int) -> int:
        """Keeps so many recorded tokens; how many are kept in fact."""
        kept: list[tuple[int, int]] = []
        left = recorded
        for length, actual in self._parts:
            if left < length:
                kept.append((left, round(actual * left / length)))
                break
            kept.append((length, actual))
            left -= length
        self._parts = kept
        return sum(actual for _, actual in kept)
