"""Tokenizer of the test model: byte-level BPE whose merges are written by rule, not trained.

Ids 0-255 are the bytes, then syllables ("ba"), syllables after a space (" ba"), words of two
syllables after a space (" bako"); the special tokens come last, as in Qwen. Any text survives
encode and decode. Vocabularies too large for the rule are filled with words that `encode` never
produces and `decode` knows.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_SPACE = "Ġ"  # how byte-level BPE writes a space
_SYLLABLES = [c + v for c in "bcdfghjklmnprstvwxyz" for v in "aeiou"]
FIRST_WORD = 256 + 2 * len(_SYLLABLES)
"""Id of the first two-syllable word."""


def word_ids(vocab: int) -> range:
    """Ids that decode to whole words: what the model may generate."""
    last = min(vocab - len(SPECIAL_TOKENS), FIRST_WORD + len(_SYLLABLES) ** 2)
    return range(FIRST_WORD, max(FIRST_WORD, last))


def special_id(vocab: int, token: str) -> int:
    return vocab - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(token)


def write_tokenizer(folder: Path, *, vocab: int, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json with exactly `vocab` ids."""
    files = {"tokenizer.json": _tokenizer(vocab), "tokenizer_config.json": _config(context)}
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _bytes_as_characters() -> list[str]:
    """The byte-level alphabet: printable bytes stand for themselves, the others are numbered on
    from code point 256, in byte order. [256] characters, by byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    numbers = itertools.count(256)
    return [chr(byte if byte in printable else next(numbers)) for byte in range(256)]


def _merges(room: int) -> list[tuple[str, str]]:
    """Up to `room` merges; each makes one token."""
    syllables = [(s[0], s[1]) for s in _SYLLABLES]
    spaced = [(_SPACE, s) for s in _SYLLABLES]
    words = [(_SPACE + a, b) for a, b in itertools.product(_SYLLABLES, repeat=2)]
    return [*syllables, *spaced, *words][:room]


def _tokenizer(vocab: int) -> dict[str, Any]:
    room = vocab - 256 - len(SPECIAL_TOKENS)
    merges = _merges(room)
    tokens = [*_bytes_as_characters(), *(a + b for a, b in merges)]
    tokens += [f"{_SPACE}word{n}" for n in range(room - len(merges))]
    ids = {token: number for number, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": special_id(vocab, token),
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in SPECIAL_TOKENS
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [list(pair) for pair in merges],
        },
    }


def _config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": CHAT_TEMPLATE,
    }
