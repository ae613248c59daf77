"""What may be asked of sampling, checked in one place before any engine sees it.

SGLang's names. SGLang itself checks some of it, and after that a number goes into an int32 or
float32 tensor of a whole batch: one that does not fit ends the engine, and everybody's turns.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent_runtime.dispatch.stops import Stops, stop_patterns, stop_strings
from dualpath_sglang.contract.errors import BadRequest

INT32 = 2**31 - 1
INT64 = 2**63 - 1
SMALLEST = 2.0**-126
"""The smallest normal float32: below it a divisor may become 0 in an engine."""
MAX_BIAS = 1e6
"""Divided by the smallest temperature that SGLang does not take for greedy, a float32 still holds
it; past every logit of a model."""
MAX_GRAMMAR_BYTES = 256 * 1024

Penalty = Annotated[float, Meta(ge=-2, le=2)]
_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


class Sampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Null: SGLang's default."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=INT32)] | None = None
    min_new_tokens: Annotated[int, Meta(ge=0, le=INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e4)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.001, le=2)] | None = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]] | None = None
    sampling_seed: Annotated[int, Meta(ge=-INT64 - 1, le=INT64)] | None = None


class Grammar(msgspec.Struct, frozen=True):
    """`kind`: one of GRAMMARS."""

    kind: str
    source: str


class Checked(msgspec.Struct, frozen=True):
    """Sampling that engines can take. `engine`: what they get, without what the router does itself
    (`stop_regex`). `grammar` still has to be compiled once, off the engines."""

    engine: dict[str, Any]
    stops: Stops
    grammar: Grammar | None
    skip_special_tokens: bool

    @property
    def max_new_tokens(self) -> int | None:
        limit: int | None = self.engine.get("max_new_tokens")
        return limit


def checked(given: Mapping[str, Any], vocab_size: int | None, *, prefix: str = "") -> Checked:
    """Raises BadRequest naming the field, with `prefix` before it."""
    fields = _fields(given, prefix)
    stops = Stops(
        stop_strings(fields.stop, f"{prefix}stop"),
        stop_patterns(fields.stop_regex, f"{prefix}stop_regex"),
        trim=not fields.no_stop_trim,
    )
    _check_numbers(fields, prefix)
    _check_vocabulary(fields, vocab_size, prefix)
    grammar = _grammar(fields, prefix)
    names = [name for name in fields.__struct_fields__ if name not in (*GRAMMARS, "stop_regex")]
    engine = {name: value for name in names if (value := getattr(fields, name)) is not None}
    if grammar is not None:
        engine[grammar.kind] = grammar.source
    return Checked(engine, stops, grammar, fields.skip_special_tokens is not False)


def schema() -> dict[str, Any]:
    """JSON schema of `Sampling`, for API documents."""
    (tree,), parts = msgspec.json.schema_components([Sampling])
    made: dict[str, Any] = parts["Sampling"] if "$ref" in tree else tree
    return made


def _fields(given: Mapping[str, Any], prefix: str) -> Sampling:
    try:
        return msgspec.convert(dict(given), Sampling)
    except msgspec.ValidationError as error:
        raise _named(str(error), given, prefix) from error


def _named(message: str, given: Mapping[str, Any], prefix: str) -> BadRequest:
    """msgspec says `Expected ... - at `$.top_k``, or `Object contains unknown field `x``."""
    if (
        unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.S)
    ) is not None:
        name, known = unknown[1], Sampling.__struct_fields__
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return BadRequest(f"unknown field {prefix + name!r}: {hint}", field=prefix + name)
    reason, _, path = message.partition(" - at `")
    reason = re.sub("str|int|float|bool", lambda word: _WORDS[word[0]], reason).replace("`", "")
    inner = re.sub(r"^.*\$\.?", "", path.rstrip("`"))
    top = re.split(r"[.\[]", inner, maxsplit=1)[0]
    got = repr(given.get(top))[:100]
    return BadRequest(f"{prefix}{inner}: {reason} (got {got})", field=f"{prefix}{inner}")


def _check_numbers(fields: Sampling, prefix: str) -> None:
    if fields.top_k == 0:
        raise BadRequest(
            f"{prefix}top_k is 0: use -1 for the whole vocabulary", field=f"{prefix}top_k"
        )
    if fields.top_p is not None and fields.top_p < SMALLEST:
        raise BadRequest(f"{prefix}top_p is {fields.top_p}, too small", field=f"{prefix}top_p")
    least, most = fields.min_new_tokens or 0, fields.max_new_tokens
    if most is not None and least > most:
        raise BadRequest(
            f"{prefix}min_new_tokens is {least}, above max_new_tokens {most}",
            field=f"{prefix}min_new_tokens",
        )


def _check_vocabulary(fields: Sampling, vocab_size: int | None, prefix: str) -> None:
    """Without a known vocabulary ids need only be such at all."""
    end = vocab_size or INT32
    for index, token in enumerate(fields.stop_token_ids or ()):
        if not 0 <= token < end:
            raise _no_token(f"{prefix}stop_token_ids[{index}]", token, end)
    for word in fields.logit_bias or ():
        if not (word.isascii() and word.isdigit() and len(word) < 11 and int(word) < end):
            raise _no_token(f"{prefix}logit_bias", word, end)


def _no_token(field: str, token: object, end: int) -> BadRequest:
    return BadRequest(
        f"{field}: {token!r} is not in the vocabulary: use ids from 0 to {end - 1}", field=field
    )


def _grammar(fields: Sampling, prefix: str) -> Grammar | None:
    """An empty text counts as none given, as in SGLang."""
    given = [(name, source) for name in GRAMMARS if (source := getattr(fields, name))]
    if not given:
        return None
    name, source = given[0]
    if len(given) > 1:
        raise BadRequest(
            f"{prefix}{name} and {prefix}{given[1][0]} cannot both hold: give one of them",
            field=f"{prefix}{given[1][0]}",
        )
    if len(source.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
        raise BadRequest(
            f"{prefix}{name} has more than {MAX_GRAMMAR_BYTES} bytes", field=f"{prefix}{name}"
        )
    if "\0" in source:
        raise BadRequest(f"{prefix}{name} holds a NUL character", field=f"{prefix}{name}")
    return Grammar(name, source)
