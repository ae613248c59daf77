"""Tiny model folders for the renderer's tests, and a session as the router keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dualpath_sglang.contract.render import Delta, Message, RenderDelta, Reply
from dualpath_sglang.renderer.model_files import ModelFiles, load_model_files
from dualpath_sglang.renderer.service import RenderService

_MERGES = [("l", "l"), ("ll", "o"), ("Ġ", "a"), ("e", "r"), ("u", "s"), ("us", "er"), ("i", "n")]
_HEAD = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
_TAIL = (
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATML = _HEAD + "{{- message.content }}" + _TAIL
TRIMS = _HEAD + "{{- message.content | trim }}" + _TAIL
STRIPS_THINKING = (
    _HEAD
    + "{%- if message.role == 'assistant' and '</think>' in message.content and not loop.last %}"
    "{{- message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{%- else %}{{- message.content }}{%- endif %}" + _TAIL
)
DATED = "{{- '<|im_start|>system\\nToday: ' + today + '<|im_end|>\\n' }}" + CHATML
LIST_CONTENT = (
    _HEAD + "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}" + _TAIL
)
TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    + _HEAD
    + "{{- message.content }}{%- for call in message.tool_calls or [] %}"
    "{{- call.function.name + '(' }}"
    "{%- for key, value in call.function.arguments | items %}{{- key ~ '=' ~ value }}{%- endfor %}"
    "{{- ')' }}{%- endfor %}" + _TAIL
)
ALTERNATES = (
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{{- m.content }}{%- endfor %}"
)


def write_model(folder: Path, template: str | None = CHATML) -> Path:
    """A byte-level BPE with a few merges, three special tokens and `template`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(a + b for a, b in _MERGES)]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, _MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    core.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"eos_token": "<|im_end|>", "bos_token": None}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300}))
    eos = [core.token_to_id("<|im_end|>"), core.token_to_id("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return folder


def make_model(folder: Path, template: str | None = CHATML) -> ModelFiles:
    return load_model_files(write_model(folder, template))


def say(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


class ExactSession:
    """Exact ids, their text and the messages, kept as the contract asks of the router."""

    def __init__(self, model: ModelFiles, **options: Any) -> None:
        self.model = model
        self.options = options
        self.ids: list[int] = []
        self.text = ""
        self.messages: list[Message] = []

    def ask(self, *new: Message, **changes: Any) -> Reply:
        request = RenderDelta(self.text, tuple(self.messages), new, **{**self.options, **changes})
        return RenderService(self.model).reply(request)

    def append(self, *new: Message, **changes: Any) -> Delta:
        delta = self.ask(*new, **changes)
        assert isinstance(delta, Delta), delta
        if delta.keep_tokens is not None and delta.keep_chars is not None:
            del self.ids[delta.keep_tokens :]
            self.text = self.text[: delta.keep_chars]
        self.ids += delta.token_ids
        self.text += delta.text
        self.messages += new
        return delta

    def generate(self, output: str | tuple[int, ...]) -> None:
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(output) if isinstance(output, str) else output
        self.ids += ids
        self.text += tokenizer.decode(ids)
        self.messages.append(say("assistant", tokenizer.content(ids)))

    def decoded(self) -> str:
        return self.model.tokenizer.decode(tuple(self.ids))
