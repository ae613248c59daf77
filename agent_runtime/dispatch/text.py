"""Token ids become text, here and nowhere else: whole characters as they are complete.

    text of an output = decode(context + output) less decode(context)

`context` is the end of the prompt, because some tokenizers write a word's space only when
something stands before it; SGLang does the same. Joined, the pieces are that text whatever the
cuts of the stream were. (One exception, where text exists only as a stream: tokenizers with byte
fallback, as SentencePiece's, turn a whole run of bytes into U+FFFD once one of them is wrong; what
was sent of the run before stays.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from dualpath_sglang.contract.errors import ConfigError

CONTEXT = 5
"""Tokens before the output that are decoded with it (SGLang: as many)."""
_REPLACEMENT = "\ufffd"
_HELD = 8
"""More tokens than this are not waited for: the longest character has four bytes."""


class OutputText(Protocol):
    """The text of one output, piece by piece."""

    def push(self, token_id: int) -> str:
        """What is whole now. Empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """The rest; bytes that are no character become U+FFFD."""
        ...


class Detokenizer:
    """Of one model. Cheap to share: it keeps no state."""

    def __init__(self, core: Tokenizer) -> None:
        self._core = core

    @classmethod
    def of(cls, model_path: str) -> Detokenizer | None:
        """Null where the model is not on this machine or has no fast tokenizer; raises ConfigError
        for a file that cannot be read."""
        file = Path(model_path) / "tokenizer.json"
        if not model_path or not file.is_file():
            return None
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"cannot read {file}: {error}", field="model_path") from error

    def output(self, prompt: Sequence[int], *, skip_special_tokens: bool = True) -> OutputText:
        """The text of what follows `prompt`."""
        return _Incremental(self._core, list(prompt[-CONTEXT:]), skip_special_tokens)


class _Incremental:
    _context: list[int]
    _stream: DecodeStream

    def __init__(self, core: Tokenizer, prompt_end: list[int], skip: bool) -> None:
        self._core = core
        self._skip = skip
        self._held: list[int] = []
        self._begin(prompt_end)

    def push(self, token_id: int) -> str:
        self._held.append(token_id)
        try:
            text: str | None = self._stream.step(self._core, token_id)
        except (
            Exception
        ):  # a decoder that rewrites what it said: the library raises plain Exception
            text = self._after(self._context, self._held)
            self._begin(self._context + self._held)
        if text is not None:
            self._context = (self._context + self._held)[-CONTEXT:]
            self._held = []
            return text
        return self._let_go() if len(self._held) > _HELD else ""

    def finish(self) -> str:
        text, self._held = self._after(self._context, self._held), []
        return text

    def _begin(self, before: list[int]) -> None:
        """A context that ends within a character would lend its bytes to what follows."""
        context = before[-CONTEXT:]
        self._context = [] if self._decode(context).endswith(_REPLACEMENT) else context
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=self._skip)

    def _let_go(self) -> str:
        """All but the last tokens, which may still become a character: without this, bytes that
        are none would be decoded again with every token."""
        before, held = self._context, self._held
        whole = self._after(before, held)
        for keep in range(3, _HELD):
            gone, kept = held[:-keep], held[-keep:]
            text = self._after(before, gone)
            self._begin(before + gone)
            if whole == text + self._after(self._context, kept):  # a cut between two characters
                break
        self._held = kept
        for token_id in kept:
            self._stream.step(self._core, token_id)
        return text

    def _after(self, context: list[int], token_ids: list[int]) -> str:
        before, whole = self._decode(context), self._decode(context + token_ids)
        return whole[len(before) :] if whole.startswith(before) else self._decode(token_ids)

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._core.decode(token_ids, skip_special_tokens=self._skip))
