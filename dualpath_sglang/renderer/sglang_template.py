"""SGLang's way from messages to prompt text, without importing SGLang. All contact is in here.

What SGLang does for a chat request (`entrypoints/openai/serving_chat.py`): it detects once
whether the template wants content as text or as parts, brings every message into that form, then
runs the tokenizer's template. Detection and content form are SGLang's own file
`srt/parser/jinja_template_utils.py`; its one heavy import (`sglang.srt.utils`, which pulls in
torch) serves media parts only, which sessions refuse, so stand-ins take its place. The template
itself runs in the function of transformers that `apply_chat_template` calls; it needs no torch.

Not covered: models that SGLang encodes in Python instead of by template (DeepSeek V3.2 and later),
built-in conversation templates chosen by model name, and media parts.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from dualpath_sglang.contract.errors import BadRequest, StartupError
from dualpath_sglang.contract.render import Message

_HEAVY = "sglang.srt.utils"
_TEXT_PARTS = ("text", "input_text")


class ChatTemplate:
    """Renders messages as SGLang would.

    `templates` maps names to Jinja sources ("default", maybe "tool_use"); `special_tokens` are the
    variables such as `bos_token` that transformers hands to every template.
    """

    def __init__(self, templates: dict[str, str], special_tokens: dict[str, str]) -> None:
        self._templates = templates
        self._special_tokens = special_tokens
        self._sglang = _load_jinja_template_utils()
        self._formats = {
            name: self._sglang.detect_jinja_template_content_format(source)
            for name, source in templates.items()
        }

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Prompt text with a generation prompt at its end.

        Raises BadRequest for a malformed message, jinja2.TemplateError or TypeError where the
        template refuses the messages.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise BadRequest(
                "the model has no chat template: append text or token ids instead of messages",
                field="messages",
            )
        form = self._formats[name]
        prepared = [self._prepared(number, m, form) for number, m in enumerate(messages)]
        rendered, _ = render_jinja_template(
            [prepared],
            tools=tools or None,
            chat_template=self._templates[name],
            add_generation_prompt=True,
            **{**self._special_tokens, **(template_kwargs or {})},
        )
        return str(rendered[0])

    def _prepared(self, number: int, message: Message, form: str) -> Message:
        check_message(number, message)
        message = {**message, "content": message.get("content") or ""}
        _parse_tool_arguments(number, message)
        ready: Message = self._sglang.process_content_for_template_format(
            message, form, [], [], [], []
        )
        content = ready.get("content")
        if ready["role"] == "tool" and isinstance(content, list):
            # SGLang hands tool results to templates as plain text only.
            ready["content"] = " ".join(part["text"] for part in content)
        return ready


def check_message(number: int, message: Message) -> None:
    """Raises BadRequest naming the message and field."""
    where = f"messages[{number}]"
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{where} needs a `role` text", field=f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        for place, part in enumerate(content):
            field = f"{where}.content[{place}]"
            if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
                raise BadRequest(f"{field} must be a part of type text", field=field)
            if not isinstance(part.get("text"), str):
                raise BadRequest(f"{field} needs a `text`", field=f"{field}.text")
    elif content is not None and not isinstance(content, str):
        raise BadRequest(
            f"{where}.content must be text or a list of parts", field=f"{where}.content"
        )


def _parse_tool_arguments(number: int, message: Message) -> None:
    """Clients send a call's arguments as JSON text, templates expect the object."""
    calls = message.get("tool_calls")
    if message["role"] != "assistant" or not isinstance(calls, list):
        return
    message["tool_calls"] = [_parsed_call(number, place, call) for place, call in enumerate(calls)]


def _parsed_call(number: int, place: int, call: Any) -> Any:
    field = f"messages[{number}].tool_calls[{place}].function"
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadRequest(f"{field} must be an object", field=field)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"{field}.arguments is not JSON: {err}", field=field) from err
    if not isinstance(parsed, dict):
        raise BadRequest(f"{field}.arguments must be a JSON object", field=field)
    return {**call, "function": {**function, "arguments": parsed}}


def _load_jinja_template_utils() -> ModuleType:
    """SGLang's file as a module of its own. Raises StartupError if it is not where it should be."""
    package = importlib.util.find_spec("sglang")  # finds it, does not run it
    if package is None or not package.submodule_search_locations:
        raise StartupError("sglang is not installed: the renderer uses its template code")
    path = Path(package.submodule_search_locations[0]) / "srt/parser/jinja_template_utils.py"
    spec = importlib.util.spec_from_file_location("dualpath_sglang_jinja_template_utils", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise StartupError(f"this sglang has no {path.name}: install the pinned version")
    module = importlib.util.module_from_spec(spec)
    hidden = {name: sys.modules.get(name) for name in ("sglang", "sglang.srt", _HEAVY)}
    sys.modules.update({name: _stand_in(name) for name in hidden})
    try:
        spec.loader.exec_module(module)
    finally:
        for name, before in hidden.items():
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before
    return module


def _stand_in(name: str) -> ModuleType:
    """A module that has any name asked for, as an empty class: only media parts would use it."""
    module = ModuleType(name)
    module.__path__ = []
    module.__dict__["__getattr__"] = lambda wanted: type(wanted, (), {})
    return module
