"""The real renderer process, on a model folder that is a tokenizer and a chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stub_engines import VOCABULARY

from dualpath_sglang.contract.render import Message
from dualpath_sglang.renderer.model_files import ModelFiles, load_model_files
from dualpath_sglang.testmodel_tokenizer import SPECIAL_TOKENS, special_id, write_tokenizer

TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if strip and message.role == 'assistant' and not loop.last %}"
    "{{- message.content.split('#')[-1] }}{%- else %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- call.function.name + '(' + (call.function.arguments | tojson) + ')' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""With `strip` set it drops what stands before # in earlier assistant messages, as templates of
reasoning models drop the reasoning."""
END = special_id(VOCABULARY, "<|im_end|>")


@dataclass(frozen=True)
class Renderer:
    """`model`: the same files, to know what tokens to expect."""

    socket: str
    model: ModelFiles
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ids(self, text: str) -> list[int]:
        return list(self.model.tokenizer.encode(text))

    def text(self, token_ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode(tuple(token_ids))


def say(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def chatml(*messages: Message) -> str:
    """What the template makes of plain messages, ready for an answer."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def write_folder(folder: Path) -> Path:
    write_tokenizer(folder, vocab=VOCABULARY, context=4096)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
    ends = [special_id(VOCABULARY, token) for token in SPECIAL_TOKENS if token != "<|im_start|>"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


@contextmanager
def renderer_process(folder: Path) -> Iterator[Renderer]:
    model, path = write_folder(folder), folder / "s"
    words = [sys.executable, "-m", "dualpath_sglang.renderer", "--model-path", str(model)]
    with subprocess.Popen(
        [*words, "--socket", str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            yield Renderer(str(path), load_model_files(folder), process)
        finally:
            process.kill()
