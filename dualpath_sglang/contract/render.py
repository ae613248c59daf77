"""What the router and the renderer process say to each other: one JSON object per line, each way.

A request line is `{"v": 1, "id": int, "request": {"op": str, ...}}`, its reply line has the same
`id` and `"reply": {"reply": str, ...}`: several requests can be under way on one connection, and
answers may come in any order.

How a session uses it. The history is an exact token list; the router also keeps `history_text`:

- after a `RenderDelta` that gave a `Delta`: append `delta.text` (and `delta.token_ids`);
- after generation: `Detokenize` the *output ids of this turn alone*, special tokens kept, and
  append `text` to `history_text`; the assistant message of the turn has `content` as its content
  (`text` less the stop token). Do not use the engine's own text: it drops special tokens.

Both sides of the comparison then come from the same decoding, so an output that ends within a UTF-8
character (U+FFFD in `text` and in `content` alike) still compares equal.

A turn appended as raw text or token ids is unknown to the template. Messages after such a turn
start a new rendering: `history_text` and `messages_before` hold only what came after it.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from dualpath_sglang.contract.errors import (
    BadRequest,
    BodyTooLarge,
    DualPathError,
    RendererFailure,
)

VERSION: Literal[1] = 1
LINE_LIMIT = 16 * 1024 * 1024
"""Longest line, newline included, in bytes. Both sides refuse longer ones."""

Message = dict[str, Any]
"""A chat message: `role`, `content` (text or list of parts), `tool_calls`, `tool_call_id`, ..."""

OnRewrite = Literal["error", "cut"]
ErrorKind = Literal["bad_request", "too_large", "template_error", "internal"]


class _Request(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    pass


class _Reply(Struct, frozen=True, forbid_unknown_fields=True, tag_field="reply"):
    pass


class Tokenize(_Request, frozen=True, tag="tokenize"):
    """Text to ids; special tokens written in the text become their ids, none are added."""

    text: str


class Detokenize(_Request, frozen=True, tag="detokenize"):
    token_ids: tuple[int, ...]


class RenderDelta(_Request, frozen=True, tag="render_delta"):
    """Tokens that carry the history on to the end of `messages_before + messages_new`.

    An empty `history_text` renders everything. The template runs with a generation prompt at the
    end; `template_kwargs` reach it as they are. With `on_rewrite="cut"` a template that rewrites
    the history is answered with a `Delta` whose `keep_tokens` is below the history's length;
    this needs `history_token_ids`, so send it only on a retry after a `Rewrite`.
    """

    history_text: str
    messages_before: tuple[Message, ...]
    messages_new: tuple[Message, ...]
    on_rewrite: OnRewrite = "error"
    history_token_ids: tuple[int, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] = {}


class Tokens(_Reply, frozen=True, tag="tokens"):
    token_ids: tuple[int, ...]


class Text(_Reply, frozen=True, tag="text"):
    """`content` is `text` without a final end-of-sequence token (if there is one)."""

    text: str
    content: str


class Delta(_Reply, frozen=True, tag="delta"):
    """Append `token_ids` after the first `keep_tokens` history tokens (null: after all of them).

    `text` is the text of `token_ids`. When the history was cut, the new `history_text` is
    its first `keep_chars` characters + `text`.
    """

    token_ids: tuple[int, ...]
    text: str
    keep_tokens: int | None = None
    keep_chars: int | None = None


class Rewrite(_Reply, frozen=True, tag="rewrite"):
    """The template would change tokens already in the history; nothing was tokenized.

    `message_index` counts over `messages_before + messages_new`.
    """

    message_index: int
    message: str


class RenderError(_Reply, frozen=True, tag="error"):
    """`bad_request` and `template_error` are the caller's to fix, `internal` is not."""

    kind: ErrorKind
    message: str
    field: str | None = None

    def to_exception(self) -> DualPathError:
        if self.kind in ("bad_request", "template_error"):
            return BadRequest(self.message, field=self.field)
        if self.kind == "too_large":
            return BodyTooLarge(self.message, field=self.field)
        return RendererFailure(self.message)


Request = Tokenize | Detokenize | RenderDelta
Reply = Tokens | Text | Delta | Rewrite | RenderError


class _RequestLine(Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[1]
    id: int
    request: Request


class _ReplyLine(Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[1]
    id: int | None
    reply: Reply


class _AnyLine(Struct, frozen=True):
    id: int | None = None


_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(_RequestLine)
_replies = msgspec.json.Decoder(_ReplyLine)
_any_lines = msgspec.json.Decoder(_AnyLine)
_FIELD = re.compile(r"field `(\w+)`|at `\$(?:\.request)?\.(\w+)")
"""The name in msgspec's message, of a field that is missing or unknown, or of a bad value."""


def encode_request(request_id: int, request: Request) -> bytes:
    """One line with its newline. Raises BodyTooLarge, or BadRequest for text that is not UTF-8."""
    return _encode(_RequestLine(VERSION, request_id, request))


def encode_reply(request_id: int | None, reply: Reply) -> bytes:
    """`request_id` is null only where the request's id could not be read."""
    return _encode(_ReplyLine(VERSION, request_id, reply))


def decode_request(line: bytes) -> tuple[int, Request]:
    """Raises BadRequest naming the field, or BodyTooLarge; see `request_id_of` for the id then."""
    if len(line) > LINE_LIMIT:
        raise BodyTooLarge(f"the line has {len(line)} bytes, the limit is {LINE_LIMIT}")
    try:
        read = _requests.decode(line)
    except (msgspec.DecodeError, RecursionError) as err:
        found = _FIELD.search(str(err))
        field = None if found is None else found[1] or found[2]
        hint = ": restart both sides" if field == "v" else ""
        raise BadRequest(f"no request of version {VERSION}: {err}{hint}", field=field) from err
    return read.id, read.request


def decode_reply(line: bytes) -> tuple[int | None, Reply]:
    """Raises RendererFailure when the line is not a reply of this version."""
    try:
        read = _replies.decode(line)
    except (msgspec.DecodeError, RecursionError) as err:
        raise RendererFailure(f"the renderer sent a line that is not a reply: {err}") from err
    return read.id, read.reply


def request_id_of(line: bytes) -> int | None:
    """The id of a line that may be malformed otherwise."""
    try:
        return _any_lines.decode(line).id
    except (msgspec.DecodeError, RecursionError):
        return None


def _encode(line: _RequestLine | _ReplyLine) -> bytes:
    try:
        written = _encoder.encode(line) + b"\n"
    except UnicodeEncodeError as err:
        raise BadRequest("the text holds a lone surrogate: send valid Unicode") from err
    except (TypeError, ValueError, RecursionError) as err:
        raise BadRequest(f"cannot be written as JSON: {err}") from err
    if len(written) > LINE_LIMIT:
        raise BodyTooLarge(
            f"{len(written)} bytes is over the renderer's line limit of {LINE_LIMIT}"
        )
    return written
