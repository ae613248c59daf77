"""Deltas hold every token of the history exactly and cost what was appended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from render_models import CHATML, LIST_CONTENT, TOOLS, ExactSession, make_model, say

from dualpath_sglang.contract.errors import BadRequest
from dualpath_sglang.contract.render import Delta
from dualpath_sglang.renderer.model_files import ModelFiles

USER_ASKS = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_first_turn_is_the_whole_rendering(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    delta = session.append(say("system", "be brief"), say("user", "hello"))
    assert delta.text == "<|im_start|>system\nbe brief<|im_end|>\n" + USER_ASKS
    assert delta.token_ids == chatml.tokenizer.encode(delta.text)
    assert delta.keep_tokens is None


def test_delta_after_a_stop_token_begins_after_it(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    session.generate("answer<|im_end|>")
    assert session.append(say("user", "hello")).text == "\n" + USER_ASKS


def test_delta_after_a_length_stop_closes_the_turn(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    session.generate("answ")
    assert session.append(say("user", "hello")).text == "<|im_end|>\n" + USER_ASKS


def test_generated_tokens_are_kept_where_encoding_would_merge_them(chatml: ModelFiles) -> None:
    tokenizer = chatml.tokenizer
    spelled = tuple(tokenizer.core.token_to_id(letter) for letter in "hello")
    assert spelled != tokenizer.encode("hello")
    session = ExactSession(chatml)
    start = session.append(say("user", "hello")).token_ids
    session.generate(spelled)
    delta = session.append(say("user", "hello"))
    assert tuple(session.ids) == start + spelled + delta.token_ids


@pytest.mark.parametrize("cut_bytes", [1, 2, 3])
def test_an_output_that_ends_within_a_character_is_no_rewrite(
    chatml: ModelFiles, cut_bytes: int
) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    session.generate(chatml.tokenizer.encode("ok 🙂")[:-cut_bytes])
    assert session.text.endswith("\ufffd")
    assert session.append(say("user", "hello")).text == "<|im_end|>\n" + USER_ASKS
    session.generate(chatml.tokenizer.encode("🙂")[1:])
    assert session.append(say("user", "hello")).text == "<|im_end|>\n" + USER_ASKS


class CountingCore:
    """Stands for the tokenizer and counts the characters it is given."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.characters = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.core.encode(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)


def test_only_what_was_appended_is_tokenized(chatml: ModelFiles) -> None:
    core = CountingCore(chatml.tokenizer.core)
    model = replace(chatml, tokenizer=replace(chatml.tokenizer, core=core))
    session = ExactSession(model)
    session.append(say("user", "word " * 20_000))
    session.generate("word " * 20_000 + "<|im_end|>")
    core.characters = 0
    session.append(say("user", "hello"))
    assert core.characters == len("\n" + USER_ASKS)


def test_text_parts_are_rendered_by_both_kinds_of_template(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    as_list = ExactSession(make_model(tmp_path / "list", LIST_CONTENT))
    as_text = ExactSession(make_model(tmp_path / "text", CHATML))
    assert "\nhello<|im_end|>" in as_list.append(say("user", parts)).text
    assert "\nhel lo<|im_end|>" in as_text.append(say("user", parts)).text  # as SGLang joins


def test_tool_calls_tool_results_and_tool_schemas(tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "ls", "parameters": {}}},)
    session = ExactSession(make_model(tmp_path, TOOLS), tools=tools)
    call = {"id": "1", "type": "function", "function": {"name": "ls", "arguments": '{"p": "x"}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a.py"}]}
    first = session.append(say("user", "hello"), asked, result)
    assert '"name": "ls"' in first.text
    assert "assistant\nls(p=x)<|im_end|>\n<|im_start|>tool\na.py<|im_end|>" in first.text
    session.generate("done<|im_end|>")
    assert session.append(say("user", "hello")).text == "\n" + USER_ASKS


def test_a_generated_tool_call_stays_text(tmp_path: Path) -> None:
    session = ExactSession(make_model(tmp_path, TOOLS))
    session.append(say("user", "hello"))
    session.generate('<tool_call>\n{"name": "ls"}\n</tool_call><|im_end|>')
    delta = session.append(say("tool", "a.py"))
    assert delta.text == "\n<|im_start|>tool\na.py<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [3]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]},
            "messages[0].tool_calls[0].function",
        ),
    ],
)
def test_a_malformed_message_is_named(chatml: ModelFiles, message: Any, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ExactSession(chatml).ask(message)
    assert caught.value.field == field


def test_no_new_message_is_refused(chatml: ModelFiles) -> None:
    with pytest.raises(BadRequest, match="messages_new is empty"):
        ExactSession(chatml).ask()


def test_a_model_without_template_says_what_to_send(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="append text or token ids"):
        ExactSession(make_model(tmp_path, None)).ask(say("user", "x"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TURNS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(["user", "tool", "system"]), TEXTS), min_size=1,
                 max_size=3),
        TEXTS,
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(turns=TURNS)
def test_joined_pieces_are_the_full_rendering(
    chatml: ModelFiles, turns: list[tuple[list[tuple[str, str]], str, bool, int]]
) -> None:
    session = ExactSession(chatml)
    pieces: list[int] = []
    for asked, output, stops, dropped in turns:
        delta = session.append(*(say(role, text) for role, text in asked))
        pieces += delta.token_ids
        assert session.text == chatml.template.render(session.messages)
        # Dropping tokens from the end leaves outputs that end within a character.
        ids = chatml.tokenizer.encode(output)
        ids = ids[: max(0, len(ids) - dropped)]
        ids += chatml.tokenizer.encode("<|im_end|>") if stops else ()
        session.generate(ids)
        pieces += ids
    last = session.append(say("user", "end"))
    assert isinstance(last, Delta)
    assert session.ids == [*pieces, *last.token_ids]
    assert session.decoded() == session.text == chatml.template.render(session.messages)
