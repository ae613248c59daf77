"""The namespace of an engine's KV pages: equal only where a page's bytes would be.

A page's key in the store is this and the hash of its tokens. The facts are all that gives KV its
values (the model's configuration, weights, types, quantization, adapters) and all that gives a
page its shape; `secondpath.sglang_pool` asks SGLang for them. A model's folder and name are not
among them, so the same model in another folder finds its pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

VERSION = 1
"""Counts up when equal facts mean other pages, or the same pages are named by other facts."""
DIGITS = 32

ABOUT_TEXT_ONLY = frozenset(
    {
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Fields of a model's config.json that change no KV: where it came from, which tokens end a text,
and the type on disk, beside which the engine's own counts. Whatever is not listed counts."""
PARTS = ("text_config", "vision_config", "audio_config")


def namespace_of(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits. `facts`: JSON values only."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def that_matter(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration without what changes no KV, in the parts of a model of several too.
    Values that JSON does not know become their text, if that says what they are."""
    return {
        str(name): that_matter(value) if str(name).endswith(PARTS) else _plain(value)
        for name, value in config.items()
        if name not in ABOUT_TEXT_ONLY
    }


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return sorted(str(item) for item in value)
    text = str(value)
    # An object that prints its address would give every process a namespace of its own.
    return type(value).__qualname__ if " at 0x" in text else text
