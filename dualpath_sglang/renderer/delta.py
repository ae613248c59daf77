"""What to append so that a session's exact history goes on to new messages.

The template renders everything to text T; its cost is text copying. Only what follows the history
is tokenized. T must start with the history's text, compared character by character: a template
that trims, strips reasoning, re-orders or dates earlier messages is thus found, never tokenized
over. An output that ended by length lacks its end-of-turn marker; T has it, so the delta starts
with it. Where the model ended a turn with another end token than the template writes, the
difference is a rewrite as well; a cut drops that one token.
"""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import TemplateError

from dualpath_sglang.contract.errors import BadRequest
from dualpath_sglang.contract.render import Delta, Message, RenderDelta, Rewrite
from dualpath_sglang.renderer.model_files import ExactTokenizer
from dualpath_sglang.renderer.sglang_template import ChatTemplate

_MARK = "\x01"  # a control character: templates neither trim it nor write it
_REPLACEMENT = "\ufffd"


def render_delta(
    request: RenderDelta, template: ChatTemplate, tokenizer: ExactTokenizer
) -> Delta | Rewrite:
    """Raises BadRequest for bad messages, jinja2.TemplateError or TypeError from the template."""
    if not request.messages_new:
        raise BadRequest("messages_new is empty: give at least one message", field="messages_new")
    messages = [*request.messages_before, *request.messages_new]

    def render(candidates: list[Message]) -> str:
        return template.render(
            candidates,
            tools=list(request.tools) if request.tools is not None else None,
            template_kwargs=request.template_kwargs,
        )

    full = render(messages)
    history = request.history_text
    if full.startswith(history):
        text = full[len(history) :]
        return Delta(tokenizer.encode(text), text)
    common = _common_prefix(full, history)
    if request.on_rewrite == "cut":
        return _cut(request, full, common, tokenizer)
    return _rewrite(messages, full, history, common, render)


def _cut(request: RenderDelta, full: str, common: int, tokenizer: ExactTokenizer) -> Delta:
    ids = request.history_token_ids
    if ids is None:
        raise BadRequest(
            "on_rewrite=cut needs the exact history: send history_token_ids",
            field="history_token_ids",
        )
    keep, kept = _keep_tokens(ids, full[:common], tokenizer)
    text = full[len(kept) :]
    return Delta(tokenizer.encode(text), text, keep_tokens=keep, keep_chars=len(kept))


def _keep_tokens(ids: tuple[int, ...], common: str, tokenizer: ExactTokenizer) -> tuple[int, str]:
    """The most leading tokens whose text `common` starts with, and that text.

    A list that ends within a UTF-8 character decodes to U+FFFD at its end, which says nothing
    about longer lists: the search leaves these out, the last loop puts them to the exact test.
    """
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if common.startswith(tokenizer.decode(ids[:middle]).rstrip(_REPLACEMENT)):
            low = middle
        else:
            high = middle - 1
    while not common.startswith(text := tokenizer.decode(ids[:low])):
        low -= 1
    return low, text


def _rewrite(
    messages: list[Message],
    full: str,
    history: str,
    common: int,
    render: Callable[[list[Message]], str],
) -> Rewrite:
    index = _message_at(messages, full, common, render)
    role = str(messages[index]["role"])
    was, now = (repr(text[common : common + 24]) for text in (history, full))
    return Rewrite(
        message_index=index,
        message=(
            f"the chat template changes the history at message {index} ({role}): "
            f"{was} would become {now}; set on_template_rewrite to cut to keep what is common"
        ),
    )


def _message_at(
    messages: list[Message], full: str, place: int, render: Callable[[list[Message]], str]
) -> int:
    """Index of the last message whose own text begins at or before `place` in `full`.

    A message's text begins where the rendering changes when its content is replaced. What a
    template writes between two messages counts to the former. Found by bisection, so a long
    session costs a few renderings, and only on this error path.
    """

    def begins(index: int) -> int:
        changed = [*messages]
        changed[index] = {**messages[index], "content": _MARK}
        try:
            return _common_prefix(full, render(changed))
        except (TemplateError, TypeError, BadRequest):
            return len(full)

    low, high = 0, len(messages) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if begins(middle) <= place:
            low = middle
        else:
            high = middle - 1
    return low


def _common_prefix(one: str, other: str) -> int:
    """Length of the longest common prefix, by bisection over slices (compared natively)."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
