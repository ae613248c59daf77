"""Token ids for counts: the same ids for the same content, everywhere and always.

A stream of numbers is the output of SHAKE-256 over a name, so a longer draw starts with the
shorter one and nothing depends on a library's random generator.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.replay.trace import Session
from dualpath_sglang.contract.errors import ConfigError


@dataclass(frozen=True)
class TokenSpace:
    """The ids a prompt may consist of: [0, vocab_size) without `avoid` (special tokens)."""

    vocab_size: int
    avoid: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or not self.allowed():
            raise ConfigError("the vocabulary has no usable token id", field="vocab_size")

    def allowed(self) -> Sequence[int]:
        return [i for i in range(self.vocab_size) if i not in self.avoid]


def space_of_model(folder: Path) -> TokenSpace:
    """Ids that the tokenizer of a model folder knows and that are not special (added) tokens.

    Reads `config.json` (vocab_size, also under text_config), `tokenizer.json` (vocab and
    added_tokens) and `tokenizer_config.json` (added_tokens_decoder); the last two may be absent.
    """
    config = _read(folder / "config.json")
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(size, int):
        raise ConfigError(f"{folder}/config.json has no vocab_size", field="model_path")
    tokenizer = _read(folder / "tokenizer.json", optional=True)
    avoid = {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    decoder = _read(folder / "tokenizer_config.json", optional=True).get("added_tokens_decoder", {})
    avoid |= {int(token) for token in decoder}
    vocab = tokenizer.get("model", {}).get("vocab")
    if isinstance(vocab, dict) and vocab:
        # Checkpoints pad the embedding; ids past the tokenizer's cannot be decoded.
        avoid |= set(range(size)) - set(vocab.values())
    return TokenSpace(size, frozenset(avoid))


def _read(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ConfigError(f"{path} does not exist", field="model_path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="model_path") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object", field="model_path")
    return value


class TokenSource:
    """Fills the appended tokens of sessions."""

    def __init__(self, space: TokenSpace) -> None:
        self._allowed = space.allowed()

    def stream(self, name: Iterable[object], count: int) -> list[int]:
        """The first `count` ids of the stream called `name`."""
        key = json.dumps([str(part) for part in name]).encode()
        numbers = array("I", hashlib.shake_256(key).digest(4 * count))
        if sys.byteorder == "big":
            numbers.byteswap()
        allowed, size = self._allowed, len(self._allowed)
        return [allowed[number % size] for number in numbers]

    def appended(self, session: Session) -> list[list[int]]:
        """Ids of what each turn appends.

        Position p of a prompt that lies in a block with an id is named (hash_scope, id) and is
        the (p mod block)-th of that stream; every other one is named (dataset, sid, turn) and
        counts from the start of the append.
        """
        filled: list[list[int]] = []
        ids: list[int] = []
        for index, turn in enumerate(session.turns):
            own = ("turn", session.dataset, session.sid, index)
            tokens = self.stream(own, turn.append)
            if turn.hash_add is not None and session.block is not None:
                added = [first + i for first, count in turn.hash_add for i in range(count)]
                ids = ids[: turn.hash_keep] + added
                self._overlay(tokens, turn.keep, ids, session.block, session.hash_scope)
            filled.append(tokens)
        return filled

    def _overlay(
        self, tokens: list[int], start: int, ids: list[int], block: int, scope: str | None
    ) -> None:
        """Replaces the tokens (of positions from `start`) that lie in blocks with an id."""
        end = min(start + len(tokens), len(ids) * block)
        for position in range(start, end):
            if position == start or position % block == 0:
                content = self.stream(("block", scope, ids[position // block]), block)
            tokens[position - start] = content[position % block]
