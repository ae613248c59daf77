"""Token ids for counts: the same ids for the same content, everywhere and always.

A stream of numbers is the output of SHAKE-256 over a name, so a longer draw starts with the
shorter one and nothing depends on a library's random generator.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.replay.blocks import Piece, pieces
from benchmarks.replay.trace import Session, SharedPrefix
from dualpath_sglang.contract.errors import ConfigError

Name = tuple[object, ...]
"""What a stream of token ids is called: equal names, equal ids."""


MAX_TOKEN_ID = 2**31
MAX_LISTED = 2**24
"""Ids that are listed one by one, because some of them are to be avoided. No tokenizer has more."""


@dataclass(frozen=True)
class TokenSpace:
    """The ids a prompt may consist of: [0, vocab_size) without `avoid` (special tokens)."""

    vocab_size: int
    avoid: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        most = MAX_LISTED if self.avoid else MAX_TOKEN_ID
        if self.vocab_size > most:
            raise ConfigError(f"a vocabulary has at most {most:,} tokens", field="vocab_size")
        if self.vocab_size < 1 or not self.allowed():
            raise ConfigError("the vocabulary has no usable token id", field="vocab_size")

    def allowed(self) -> Sequence[int]:
        every = range(self.vocab_size)
        return [i for i in every if i not in self.avoid] if self.avoid else every


def space_of_model(folder: Path) -> TokenSpace:
    """Ids that the tokenizer of a model folder knows and that are not special (added) tokens.

    Reads `config.json` (vocab_size, also under text_config), `tokenizer.json` (vocab and
    added_tokens) and `tokenizer_config.json` (added_tokens_decoder); the last two may be absent.
    """
    config = _read(folder / "config.json")
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    if not isinstance(size, int):
        raise ConfigError(f"{folder}/config.json has no vocab_size", field="model_path")
    if size > MAX_LISTED:
        problem = f"{folder}/config.json: vocab_size is above {MAX_LISTED:,}"
        raise ConfigError(problem, field="model_path")
    try:
        return TokenSpace(size, frozenset(_unusable(folder, size)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"the tokenizer files in {folder} are damaged: {type(error).__name__} {error}"
        raise ConfigError(problem, field="model_path") from error


def _unusable(folder: Path, size: int) -> set[int]:
    """Ids of special tokens, and those that the tokenizer does not have."""
    tokenizer = _read(folder / "tokenizer.json", optional=True)
    avoid = {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    decoder = _read(folder / "tokenizer_config.json", optional=True).get("added_tokens_decoder", {})
    avoid |= {int(token) for token in decoder}
    vocab = tokenizer.get("model", {}).get("vocab")
    if isinstance(vocab, dict) and vocab:
        # Checkpoints pad the embedding; ids past the tokenizer's cannot be decoded.
        avoid |= set(range(size)) - set(vocab.values())
    return avoid


def _read(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ConfigError(f"{path} does not exist", field="model_path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="model_path") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object", field="model_path")
    return value


class TokenSource:
    """Fills the appended tokens of sessions.

    `mark`: every context starts with this one of the usable ids (counted round and round), in
    place of its first token. Nothing that another mark or none has left in a cache is then a hit,
    while what sessions share they share still.
    """

    def __init__(self, space: TokenSpace, mark: int | None = None) -> None:
        self._allowed = space.allowed()
        self._mark = None if mark is None else self._allowed[mark % len(self._allowed)]

    def stream(self, name: Iterable[object], count: int) -> list[int]:
        """The first `count` ids of the stream called `name`."""
        key = json.dumps([str(part) for part in name]).encode()
        numbers = array("I", hashlib.shake_256(key).digest(4 * count))
        if sys.byteorder == "big":
            numbers.byteswap()
        allowed, size = self._allowed, len(self._allowed)
        return [allowed[number % size] for number in numbers]

    def appended(self, session: Session) -> list[list[int]]:
        """Ids of what each turn appends."""
        filled = self._filled(session)
        if self._mark is not None:
            for turn, tokens in zip(session.turns, filled, strict=True):
                if turn.keep == 0:
                    tokens[0] = self._mark
        return filled

    def _filled(self, session: Session) -> list[list[int]]:
        """Recorded text is itself. What lies in a block with an id is named (hash_scope, id), or by
        the prefix that it is part of where other users have the same; every other token is named
        (dataset, sid, turn) and counts from the start of the append.
        """
        names = _shared_blocks(session)
        filled: list[list[int]] = []
        ids: list[int] = []
        for index, turn in enumerate(session.turns):
            if turn.hash_add is not None:
                added = [first + i for first, count in turn.hash_add for i in range(count)]
                ids = ids[: turn.hash_keep] + added
            if turn.text is not None:
                filled.append(list(turn.text.ids))
                continue
            tokens = self.stream(("turn", session.dataset, session.sid, index), turn.append)
            if index == 0 and session.shared is not None and not names:
                self._prefix(tokens, session, session.shared)
            if turn.hash_add is not None and session.block is not None:
                for piece in pieces(turn, ids, session.block, session.factor):
                    self._fill(tokens, piece, _name(piece, session, names))
            filled.append(tokens)
        return filled

    def _fill(self, tokens: list[int], piece: Piece, name: Iterable[object]) -> None:
        content = self.stream(name, piece.skip + piece.count)
        tokens[piece.at : piece.at + piece.count] = content[piece.skip :]

    def _prefix(self, tokens: list[int], session: Session, shared: SharedPrefix) -> None:
        """Replaces the start of a first prompt that has no ids."""
        tools = min(len(tokens), round(shared.tools * session.factor))
        both = min(len(tokens), round((shared.tools + shared.system) * session.factor))
        tokens[:tools] = self.stream(_tools_name(session, shared), tools)
        tokens[tools:both] = self.stream(_system_name(session, shared), both - tools)


def _name(piece: Piece, session: Session, names: Mapping[int, Name]) -> Name:
    """Of the content that the piece's ids stand for."""
    if all(block in names for block in piece.ids):
        return tuple(part for block in piece.ids for part in names[block])
    return ("block", session.hash_scope, *piece.ids)


def _tools_name(session: Session, shared: SharedPrefix) -> Name:
    return ("shared tools", session.dataset, shared.tools)


def _system_name(session: Session, shared: SharedPrefix) -> Name:
    return ("shared system", session.dataset, shared.tools, shared.system)


def _shared_blocks(session: Session) -> dict[int, Name]:
    """A name for each id of the shared prefix: that of the last content in the block."""
    shared = session.shared
    if shared is None or session.block is None:
        return {}
    tools = shared.tools // session.block
    return {
        block: (*(_tools_name if index < tools else _system_name)(session, shared), index)
        for index, block in enumerate(shared.ids)
    }
