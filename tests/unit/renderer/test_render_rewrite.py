"""A template that rewrites history is found, named and cut, never tokenized over."""

from __future__ import annotations

from pathlib import Path

import pytest
from render_models import (
    ALTERNATES,
    DATED,
    STRIPS_THINKING,
    TRIMS,
    ExactSession,
    make_model,
    say,
)

from dualpath_sglang.contract.errors import BadRequest
from dualpath_sglang.contract.render import RenderError, Rewrite
from dualpath_sglang.renderer.model_files import ModelFiles

THOUGHT = "<think>\nhm\n</think>\n\nanswer<|im_end|>"


def thinking_session(folder: Path) -> ExactSession:
    session = ExactSession(make_model(folder, STRIPS_THINKING))
    session.append(say("system", "s"), say("user", "hello"))
    session.generate(THOUGHT)
    return session


def rewrite_of(session: ExactSession, **changes: object) -> Rewrite:
    reply = session.ask(say("user", "more"), **changes)
    assert isinstance(reply, Rewrite), reply
    return reply


def test_stripped_reasoning_names_the_assistant_message(tmp_path: Path) -> None:
    session = thinking_session(tmp_path)
    reply = rewrite_of(session)
    assert reply.message_index == 2
    assert "message 2 (assistant)" in reply.message
    assert "on_template_rewrite" in reply.message


def test_trimmed_output_is_found(tmp_path: Path) -> None:
    session = ExactSession(make_model(tmp_path, TRIMS))
    session.append(say("user", "one"))
    session.generate("fine<|im_end|>")
    session.append(say("user", "two"))
    session.generate("padded \n<|im_end|>")
    reply = rewrite_of(session)
    assert reply.message_index == 3
    assert r"message 3 (assistant): ' \n<|im_end|>' would become" in reply.message


def test_an_injected_date_names_the_first_message(tmp_path: Path) -> None:
    session = ExactSession(make_model(tmp_path, DATED), template_kwargs={"today": "Monday"})
    session.append(say("user", "hello"))
    session.generate("answer<|im_end|>")
    reply = rewrite_of(session, template_kwargs={"today": "Tuesday"})
    assert reply.message_index == 0
    assert "'Monday<|im_end|>" in reply.message
    session.append(say("user", "same day"))


@pytest.mark.parametrize("changed", [0, 5, 17, 30])
def test_a_changed_message_among_many_is_named(chatml: ModelFiles, changed: int) -> None:
    session = ExactSession(chatml)
    for turn in range(20):
        session.append(say("user", f"ask {turn}"))
        session.generate(f"answer {turn}<|im_end|>")
    session.messages[changed] = {**session.messages[changed], "content": "other"}
    assert rewrite_of(session).message_index == changed


def test_another_end_token_is_a_rewrite_that_a_cut_drops(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    session.generate("answer<|endoftext|>")
    assert rewrite_of(session).message_index == 1
    before = list(session.ids)
    delta = session.append(
        say("user", "more"), on_rewrite="cut", history_token_ids=tuple(session.ids)
    )
    assert delta.keep_tokens == len(before) - 1
    assert session.ids[: delta.keep_tokens] == before[:-1]
    assert delta.text.startswith("<|im_end|>\n")


def test_cut_keeps_the_common_prefix_and_goes_on_exactly(tmp_path: Path) -> None:
    session = thinking_session(tmp_path)
    before = tuple(session.ids)
    rewrite_of(session)
    delta = session.append(say("user", "more"), on_rewrite="cut", history_token_ids=before)
    assert session.text[: delta.keep_chars].endswith("<|im_start|>assistant\n")
    assert delta.keep_tokens is not None
    assert tuple(session.ids[: delta.keep_tokens]) == before[: delta.keep_tokens]
    assert delta.text.startswith("answer<|im_end|>")
    assert session.decoded() == session.text == session.model.template.render(session.messages)
    session.generate("plain<|im_end|>")
    assert session.append(say("user", "again")).keep_tokens is None


def test_cut_never_keeps_part_of_a_character_or_of_a_token(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    # 🙂 and 🙃 share three of four bytes; "llo" is one token.
    session.generate("a 🙂 llo<|im_end|>")
    session.messages[-1] = say("assistant", "a 🙃")
    history = tuple(session.ids)
    delta = session.append(say("user", "x"), on_rewrite="cut", history_token_ids=history)
    assert session.text[: delta.keep_chars].endswith("assistant\na ")
    assert session.decoded() == session.text
    session.generate("llo<|im_end|>")
    session.messages[-1] = say("assistant", "ll!")
    history = tuple(session.ids)
    delta = session.append(say("user", "x"), on_rewrite="cut", history_token_ids=history)
    assert session.text[: delta.keep_chars].endswith("assistant\n")


def test_cut_without_the_tokens_says_what_to_send(tmp_path: Path) -> None:
    session = thinking_session(tmp_path)
    with pytest.raises(BadRequest, match="send history_token_ids") as caught:
        session.ask(say("user", "more"), on_rewrite="cut")
    assert caught.value.field == "history_token_ids"


def test_cut_is_silent_where_nothing_is_rewritten(chatml: ModelFiles) -> None:
    session = ExactSession(chatml)
    session.append(say("user", "hello"))
    session.generate("answer<|im_end|>")
    delta = session.append(say("user", "more"), on_rewrite="cut")
    assert delta.keep_tokens is None


def test_a_template_that_refuses_is_the_callers_error(tmp_path: Path) -> None:
    reply = ExactSession(make_model(tmp_path, ALTERNATES)).ask(say("user", "a"), say("user", "b"))
    assert isinstance(reply, RenderError)
    assert reply.kind == "template_error"
    assert "roles must alternate" in reply.message
    assert isinstance(reply.to_exception(), BadRequest)
