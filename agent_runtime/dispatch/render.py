"""Appended input becomes tokens: the first step of a turn."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import msgspec

from agent_runtime.trajectory.chat import ChatNode
from agent_runtime.trajectory.model import (
    ChatPart,
    MessagesInput,
    TextInput,
    TokenInput,
    TurnRequest,
)
from agent_runtime.trajectory.renderer import Renderer
from agent_runtime.trajectory.session import Session
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.errors import DualPathError, RendererFailure, TemplateRewrite
from dualpath_sglang.contract.render import (
    Delta,
    Detokenize,
    RenderDelta,
    Reply,
    Rewrite,
    Text,
    Tokenize,
    Tokens,
)


@dataclass(frozen=True)
class Rendered:
    """The prompt will be `history[:kept] + input`; `chat` goes with a messages turn."""

    kept: int
    input: array[int]
    chat: ChatPart | None = None


async def render(session: Session, request: TurnRequest, renderer: Renderer) -> Rendered:
    """Raises BadRequest, TemplateRewrite, RendererFailure; the session stays as it is."""
    kept = session.kept(request.keep)
    match request.input:
        case TokenInput(token_ids):
            return Rendered(kept, token_ids)
        case TextInput(text):
            reply = await renderer.ask(Tokenize(text))
            if not isinstance(reply, Tokens):
                raise _unexpected(reply)
            return Rendered(kept, pack(reply.token_ids))
        case MessagesInput():
            return await _render_messages(session, kept, request, request.input, renderer)


async def decode_output(chat: ChatPart, output: array[int], renderer: Renderer) -> ChatPart:
    """`chat` with the text of the output, or as it is when there is none now (the renderer is away,
    or does not know a token): the next messages turn decodes it then. The turn itself is whole."""
    try:
        text = await _detokenized(output, renderer)
    except DualPathError:
        return chat
    return replace(chat, output_text=text.text, output_content=text.content)


async def _render_messages(
    session: Session, kept: int, request: TurnRequest, given: MessagesInput, renderer: Renderer
) -> Rendered:
    after = session.chat_turn_at(kept)
    node = session.chat_of(after)
    if node is not None:
        await _decode_all(node, renderer)
    question = RenderDelta(
        history_text="" if node is None else node.text(),
        messages_before=() if node is None else node.messages(),
        messages_new=given.messages,
        tools=given.tools,
        template_kwargs=dict(given.template_kwargs),
    )
    reply = await renderer.ask(question)
    if isinstance(reply, Rewrite):
        if request.on_template_rewrite == "error" or node is None:
            raise TemplateRewrite(reply.message, field=_field_of(reply, question))
        history = tuple(session.tokens[node.start : kept])
        cut = msgspec.structs.replace(question, on_rewrite="cut", history_token_ids=history)
        reply = await renderer.ask(cut)
    if not isinstance(reply, Delta):
        raise _unexpected(reply)
    start = kept if node is None else node.start
    chars = len(question.history_text) if reply.keep_chars is None else reply.keep_chars
    return Rendered(
        kept=kept if reply.keep_tokens is None else start + reply.keep_tokens,
        input=pack(reply.token_ids),
        chat=ChatPart(after, chars, given.messages, reply.text),
    )


def _field_of(rewrite: Rewrite, question: RenderDelta) -> str:
    """The message of this turn that is at fault, or all where the fault shows in an earlier one."""
    index = rewrite.message_index - len(question.messages_before)
    return f"messages[{index}]" if index >= 0 else "messages"


async def _decode_all(node: ChatNode, renderer: Renderer) -> None:
    for earlier in node.undecoded():
        text = await _detokenized(earlier.output, renderer)
        earlier.output_text, earlier.output_content = text.text, text.content


async def _detokenized(output: array[int], renderer: Renderer) -> Text:
    reply = await renderer.ask(Detokenize(tuple(output)))
    if not isinstance(reply, Text):
        raise _unexpected(reply)
    return reply


def _unexpected(reply: Reply) -> RendererFailure:
    return RendererFailure(f"the renderer answered with {type(reply).__name__}")
