"""What the router and the renderer process say to each other: one JSON object per line, each way.

A request line is `{"v": 1, "id": int, "op": str, ...}`; the reply line carries the same `id` and a
`reply` tag, so several requests can be under way on one connection and answers may come in any
order. Standard library only: both sides import this file.

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

import json
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal

from dualpath_sglang.contract.errors import (
    BadRequest,
    BodyTooLarge,
    ClientError,
    DualPathError,
    RendererFailure,
)

VERSION = 1
LINE_LIMIT = 16 * 1024 * 1024
"""Longest line, newline included, in bytes. Both sides refuse longer ones."""

Message = dict[str, Any]
"""A chat message: `role`, `content` (text or list of parts), `tool_calls`, `tool_call_id`, ..."""

OnRewrite = Literal["error", "cut"]
ErrorKind = Literal["bad_request", "too_large", "template_error", "internal"]


@dataclass(frozen=True)
class Tokenize:
    """Text to ids; special tokens written in the text become their ids, none are added."""

    op: ClassVar[str] = "tokenize"
    text: str


@dataclass(frozen=True)
class Detokenize:
    op: ClassVar[str] = "detokenize"
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class RenderDelta:
    """Tokens that carry the history on to the end of `messages_before + messages_new`.

    An empty `history_text` renders everything. The template runs with a generation prompt at the
    end; `template_kwargs` reach it as they are. With `on_rewrite="cut"` a template that rewrites
    the history is answered with a `Delta` whose `keep_tokens` is below the history's length;
    this needs `history_token_ids`, so send it only on a retry after a `Rewrite`.
    """

    op: ClassVar[str] = "render_delta"
    history_text: str
    messages_before: tuple[Message, ...]
    messages_new: tuple[Message, ...]
    on_rewrite: OnRewrite = "error"
    history_token_ids: tuple[int, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    reply: ClassVar[str] = "tokens"
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """`content` is `text` without a final end-of-sequence token (if there is one)."""

    reply: ClassVar[str] = "text"
    text: str
    content: str


@dataclass(frozen=True)
class Delta:
    """Append `token_ids` after the first `keep_tokens` history tokens (null: after all of them).

    `text` is the text of `token_ids`. When the history was cut, the new `history_text` is
    its first `keep_chars` characters + `text`.
    """

    reply: ClassVar[str] = "delta"
    token_ids: tuple[int, ...]
    text: str
    keep_tokens: int | None = None
    keep_chars: int | None = None


@dataclass(frozen=True)
class Rewrite:
    """The template would change tokens already in the history; nothing was tokenized.

    `message_index` counts over `messages_before + messages_new`.
    """

    reply: ClassVar[str] = "rewrite"
    message_index: int
    message: str


@dataclass(frozen=True)
class RenderError:
    """`bad_request` and `template_error` are the caller's to fix, `internal` is not."""

    reply: ClassVar[str] = "error"
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

_REQUESTS: dict[str, type[Any]] = {c.op: c for c in (Tokenize, Detokenize, RenderDelta)}
_REPLIES: dict[str, type[Any]] = {c.reply: c for c in (Tokens, Text, Delta, Rewrite, RenderError)}


def encode_request(request_id: int, request: Request) -> bytes:
    """One line with its newline. Raises BodyTooLarge, or BadRequest for text that is not UTF-8."""
    return _encode({"v": VERSION, "id": request_id, "op": request.op}, request)


def encode_reply(request_id: int | None, reply: Reply) -> bytes:
    """`request_id` is null only where the request's id could not be read."""
    return _encode({"v": VERSION, "id": request_id, "reply": reply.reply}, reply)


def decode_request(line: bytes) -> tuple[int, Request]:
    """Raises BadRequest naming the field, or BodyTooLarge; see `request_id_of` for the id then."""
    data = _object(line)
    request_id = _request_id(data)
    if request_id is None:
        raise BadRequest("give the request an integer `id`", field="id")
    kind = data.get("op")
    made = _REQUESTS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise BadRequest(f"unknown op {kind!r}: use one of {sorted(_REQUESTS)}", field="op")
    request: Request = _build(made, data, skip={"v", "id", "op"})
    return request_id, request


def decode_reply(line: bytes) -> tuple[int | None, Reply]:
    """Raises RendererFailure when the line is not a reply of this version."""
    try:
        data = _object(line)
        made = _REPLIES[data["reply"]]
        reply: Reply = _build(made, data, skip={"v", "id", "reply"})
    except (ClientError, KeyError, TypeError) as err:
        raise RendererFailure(f"the renderer sent a line that is not a reply: {err}") from err
    return _request_id(data), reply


def request_id_of(line: bytes) -> int | None:
    """The id of a line that may be malformed otherwise."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _request_id(data) if isinstance(data, dict) else None


def _encode(head: dict[str, Any], value: Request | Reply) -> bytes:
    body = {f.name: getattr(value, f.name) for f in fields(value)}
    try:
        text = json.dumps(head | body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        line = text.encode() + b"\n"
    except UnicodeEncodeError as err:
        raise BadRequest("the text holds a lone surrogate: send valid Unicode") from err
    except (TypeError, ValueError) as err:
        raise BadRequest(f"cannot be written as JSON: {err}") from err
    if len(line) > LINE_LIMIT:
        raise BodyTooLarge(f"{len(line)} bytes is over the renderer's line limit of {LINE_LIMIT}")
    return line


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_LIMIT:
        raise BodyTooLarge(f"the line has {len(line)} bytes, the limit is {LINE_LIMIT}")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"the line is not JSON: {err}") from err
    if not isinstance(data, dict):
        raise BadRequest("the line must be one JSON object")
    if data.get("v") != VERSION:
        raise BadRequest(
            f"version {data.get('v')!r} is not {VERSION}: restart both sides", field="v"
        )
    return data


def _request_id(data: dict[str, Any]) -> int | None:
    value = data.get("id")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _build(made: type[Any], data: dict[str, Any], skip: set[str]) -> Any:
    """The dataclass `made` from its JSON fields, checked field by field."""
    known = {f.name: f for f in fields(made)}
    for name in data.keys() - skip - known.keys():
        raise BadRequest(f"unknown field {name!r}: use {sorted(known)}", field=name)
    given = {name: value for name, value in data.items() if name in known}
    values = {name: _checked(name, str(known[name].type), given[name]) for name in given}
    for f in fields(made):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise BadRequest(f"field {f.name!r} is missing", field=f.name)
    return made(**values)


def _checked(name: str, kind: str, value: Any) -> Any:
    """`value` as the annotation `kind` says (the annotations above are the schema)."""
    if kind.endswith("| None") and value is None:
        return None
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple["):
        item: type = int if kind == "tuple[int, ...]" else dict
        if isinstance(value, list) and all(type(v) is item for v in value):
            return tuple(value)
        raise BadRequest(f"{name} must be a list of {item.__name__}", field=name)
    allowed = {"OnRewrite": ("error", "cut")}.get(kind)
    if allowed is not None:
        if value in allowed:
            return value
        raise BadRequest(f"{name} must be one of {allowed}", field=name)
    simple = int if kind == "int" else dict if kind.startswith("dict[") else str
    if type(value) is simple:
        return value
    raise BadRequest(f"{name} must be of type {simple.__name__}", field=name)
