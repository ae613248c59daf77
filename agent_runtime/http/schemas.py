"""Request bodies. Pydantic lives here and nowhere else; what goes in is a `TurnRequest`."""

from __future__ import annotations

import difflib
import hashlib
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from agent_runtime.dispatch.sampling import INT32
from agent_runtime.dispatch.sampling import schema as sampling_schema
from agent_runtime.trajectory.model import (
    MessagesInput,
    TextInput,
    TokenInput,
    TurnInput,
    TurnRequest,
)
from agent_runtime.trajectory.tokens import pack
from dualpath_sglang.contract.errors import BadRequest

TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class _Strict(BaseModel):
    """`free_form`: fields whose inside is the client's own."""

    model_config = ConfigDict(strict=True, extra="forbid")
    free_form: ClassVar[frozenset[str]] = frozenset()


class CreateSession(_Strict):
    free_form = frozenset({"metadata"})

    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    metadata: dict[str, Any] = {}


class TurnBody(_Strict):
    """Exactly one of `token_ids`, `text` and `messages` says what is appended."""

    free_form = frozenset({"messages", "tools", "template_kwargs"})

    token_ids: list[TokenId] | None = None
    text: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    keep: Annotated[int, Field(ge=0)] | None = None
    if_turn: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    sampling: Annotated[dict[str, Any], WithJsonSchema(sampling_schema())] = {}
    stream: bool = False
    keep_partial: bool = False
    on_template_rewrite: Literal["error", "cut"] = "error"
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None


B = TypeVar("B", bound=_Strict)


def parse(kind: type[B], raw: bytes) -> B:
    """A JSON body as `kind`. Raises BadRequest naming the first wrong field and the fix."""
    try:
        data = msgspec.json.decode(raw or b"{}")  # keeps long integers, which orjson rounds
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object")
    for name in kind.free_form & data.keys():
        _check_integers(data[name], name)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _first_problem(kind, error) from error


def _check_integers(value: Any, field: str) -> None:
    """Nothing that stores or sends JSON here holds more than 64 bits."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_integers(inner, f"{field}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_integers(inner, f"{field}[{index}]")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise BadRequest(
            f"{field} is an integer of more than 64 bits: send it as text", field=field
        )


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON schema without references: within an OpenAPI document they would point nowhere."""
    schema = kind.model_json_schema(ref_template="{model}")
    inner = schema.pop("$defs", {})
    fields = schema["properties"]
    schema["properties"] = {name: inner.get(f.get("$ref"), f) for name, f in fields.items()}
    return schema


def turn_request(body: TurnBody, idempotency_key: str | None) -> TurnRequest:
    """Raises BadRequest for fields that are each right but do not fit together."""
    limit = body.sampling.get("max_new_tokens")
    if None not in (limit, body.max_new_tokens) and limit != body.max_new_tokens:
        raise BadRequest(
            f"max_new_tokens is {body.max_new_tokens} and sampling.max_new_tokens {limit}: "
            "give one of them",
            field="max_new_tokens",
        )
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= 255:
        raise BadRequest("give 1 to 255 characters", field="Idempotency-Key")
    return TurnRequest(
        input=_input(body),
        max_new_tokens=body.max_new_tokens,
        sampling={name: value for name, value in body.sampling.items() if value is not None},
        sampling_prefix="sampling.",
        keep=body.keep,
        if_turn=body.if_turn,
        keep_partial=body.keep_partial,
        deadline_s=body.deadline_s,
        on_template_rewrite=body.on_template_rewrite,
        idempotency_key=idempotency_key,
        digest=_digest(body) if idempotency_key is not None else "",
    )


def _input(body: TurnBody) -> TurnInput:
    given = [n for n in ("token_ids", "text", "messages") if getattr(body, n) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise BadRequest(
            f"give exactly one of token_ids, text and messages (got {got})", field="token_ids"
        )
    for name in ("tools", "template_kwargs"):
        if getattr(body, name) and body.messages is None:
            raise BadRequest(f"{name} goes with messages only", field=name)
    if body.messages is not None:
        tools = None if body.tools is None else tuple(body.tools)
        return MessagesInput(tuple(body.messages), tools, body.template_kwargs)
    if body.text is not None:
        return TextInput(body.text)
    assert body.token_ids is not None
    return TokenInput(pack(body.token_ids))


def _digest(body: TurnBody) -> str:
    """What makes two requests the same; how the answer is delivered does not count."""
    data = body.model_dump(exclude={"stream", "if_turn", "deadline_s"}, exclude_none=True)
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _first_problem(kind: type[BaseModel], error: ValidationError) -> BadRequest:
    problem = error.errors(include_url=False, include_context=False)[0]
    field = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(kind.model_fields)
        near = difflib.get_close_matches(field.split(".")[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return BadRequest(f"unknown field {field!r}: {hint}", field=field)
    got = repr(problem["input"])[:100]
    return BadRequest(f"{field}: {problem['msg']} (got {got})", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[2].role`; names that pydantic adds for the branches of a union are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "list"):
            path += f".{part}" if path else part
    return path
