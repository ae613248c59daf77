"""Tokenizer and template of a model folder, read from its files (no torch, no model code)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dualpath_sglang.contract.errors import BadRequest, StartupError
from dualpath_sglang.renderer.sglang_template import ChatTemplate

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class ExactTokenizer:
    """Text to ids and back with nothing added, cut or cleaned up.

    `eos_ids` end a turn; ids are in [0, `vocab_size`).
    """

    core: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str) -> tuple[int, ...]:
        """Special tokens written in `text` become their ids. Raises BadRequest on bad Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise BadRequest("the text holds a lone surrogate: send valid Unicode") from err
        return tuple(self.core.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: tuple[int, ...]) -> str:
        """Bytes that are no UTF-8 become U+FFFD. Raises BadRequest for an id out of range."""
        for place, number in enumerate(ids):
            if not 0 <= number < self.vocab_size:
                raise BadRequest(
                    f"token id {number} at {place} is not in [0, {self.vocab_size})",
                    field="token_ids",
                )
        return str(self.core.decode(list(ids), skip_special_tokens=False))

    def content(self, ids: tuple[int, ...]) -> str:
        """Text of an output without its end-of-sequence token."""
        body = ids[:-1] if ids and ids[-1] in self.eos_ids else ids
        return self.decode(body)


@dataclass(frozen=True)
class ModelFiles:
    tokenizer: ExactTokenizer
    template: ChatTemplate


def load_model_files(folder: Path) -> ModelFiles:
    """Raises StartupError naming the file that is missing, unreadable or unfit."""
    if not folder.is_dir():
        raise StartupError(f"model path {folder} is not a folder: give a downloaded model's folder")
    settings = _json(folder / "tokenizer_config.json")
    config = _json(folder / "config.json")
    core = _core(folder / "tokenizer.json")
    named = _named_tokens(settings)
    vocab = int((config.get("text_config") or config).get("vocab_size") or 0)
    tokenizer = ExactTokenizer(
        core=core,
        eos_ids=_eos_ids(core, named, config, _json(folder / "generation_config.json")),
        vocab_size=max(vocab, core.get_vocab_size(with_added_tokens=True)),
    )
    _check_concatenation(tokenizer, folder)
    return ModelFiles(tokenizer, ChatTemplate(_templates(folder, settings), named))


def _core(path: Path) -> Tokenizer:
    if not path.is_file():
        raise StartupError(f"{path} is missing: save the tokenizer in its fast form")
    try:
        core = Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises plain Exception
        raise StartupError(f"{path} cannot be read: {err}") from err
    core.no_truncation()
    core.no_padding()
    return core


def _check_concatenation(tokenizer: ExactTokenizer, folder: Path) -> None:
    """A session's text is the joined text of its pieces, so pieces must decode side by side."""
    pieces = ("Tool", " said:\n", "ok", "\n\n1 2")
    ids = tuple(number for piece in pieces for number in tokenizer.encode(piece))
    if tokenizer.decode(ids) != "".join(pieces):
        raise StartupError(
            f"the tokenizer in {folder} changes text at the seams of pieces tokenized apart, so "
            "sessions cannot be exact: run without a renderer and send token ids"
        )


def _eos_ids(core: Tokenizer, named: dict[str, str], *configs: dict[str, Any]) -> frozenset[int]:
    """As SGLang: those of both config files and the tokenizer's own."""
    found: set[int] = set()
    for config in configs:
        value = (config.get("text_config") or config).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    own = core.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return frozenset(found if own is None else found | {own})


def _named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            named[name] = text
    return named


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Template files win over tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    extra = folder / "additional_chat_templates"
    for path in sorted(extra.glob("*.jinja")) if extra.is_dir() else []:
        found[path.stem] = path.read_text(encoding="utf-8")
    single = folder / "chat_template.jinja"
    if single.is_file():
        found["default"] = single.read_text(encoding="utf-8")
    if found:
        return found
    value = settings.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        return {entry["name"]: entry["template"] for entry in value}
    return {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise StartupError(f"{path} is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise StartupError(f"{path} must hold a JSON object")
    return value
