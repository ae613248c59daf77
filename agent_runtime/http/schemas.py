"""Request bodies. Pydantic lives here and nowhere else; what goes in is a `TurnRequest`."""

from __future__ import annotations

import difflib
import hashlib
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
Penalty = Annotated[float, Field(ge=-2, le=2)]
B = TypeVar("B", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class CreateSession(_Strict):
    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    metadata: dict[str, Any] = {}


class Sampling(_Strict):
    """SGLang's sampling parameters, those that make sense for one turn of a session."""

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None


class TurnBody(_Strict):
    """Exactly one of `token_ids`, `text` and `messages` says what is appended."""

    token_ids: list[TokenId] | None = None
    text: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    keep: Annotated[int, Field(ge=0)] | None = None
    if_turn: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    sampling: Sampling = Sampling()
    stream: bool = False
    keep_partial: bool = False
    on_template_rewrite: Literal["error", "cut"] = "error"
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None


def parse(kind: type[B], raw: bytes) -> B:
    """A JSON body as `kind`. Raises BadRequest naming the first wrong field and the fix."""
    try:
        data = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _first_problem(kind, error) from error


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON schema without references: within an OpenAPI document they would point nowhere."""
    schema = kind.model_json_schema(ref_template="{model}")
    inner = schema.pop("$defs", {})
    fields = schema["properties"]
    schema["properties"] = {name: inner.get(f.get("$ref"), f) for name, f in fields.items()}
    return schema


def turn_request(body: TurnBody, idempotency_key: str | None) -> TurnRequest:
    """Raises BadRequest for fields that are each right but do not fit together."""
    sampling = body.sampling.model_dump(exclude_none=True)
    limit = sampling.pop("max_new_tokens", None)
    if None not in (limit, body.max_new_tokens) and limit != body.max_new_tokens:
        raise BadRequest(
            f"max_new_tokens is {body.max_new_tokens} and sampling.max_new_tokens {limit}: "
            "give one of them",
            field="max_new_tokens",
        )
    limit = body.max_new_tokens or limit
    least = sampling.get("min_new_tokens", 0)
    if limit is not None and least > limit:
        raise BadRequest(
            f"sampling.min_new_tokens is {least}, above max_new_tokens {limit}",
            field="sampling.min_new_tokens",
        )
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= 255:
        raise BadRequest("give 1 to 255 characters", field="Idempotency-Key")
    return TurnRequest(
        input=_input(body),
        max_new_tokens=limit,
        sampling=sampling,
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
        section: Any = Sampling if field.startswith("sampling.") else kind
        known = list(section.model_fields)
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
