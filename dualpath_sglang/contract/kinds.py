"""The types of settings, and what they are called in error messages and in the settings table."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta

_LARGEST = sys.float_info.max
MOST_S = 1e7
"""Four months. Event loops cannot wait for ever longer: their clocks count in 64 bits."""

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Number = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
"""Any number but the infinite ones and nan, which no comparison refuses."""
Seconds = Annotated[float, Meta(ge=0, le=MOST_S)]
SomeSeconds = Annotated[float, Meta(ge=0.001, le=MOST_S)]

OwnerName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z", title="name of letters, digits, dots and dashes")
]
Secret = Annotated[
    str,
    Meta(
        pattern=r"^([!-~]{16,512})?\Z",
        title="secret of 16 to 512 visible characters",
        extra={"secret": True},
    ),
]
"""Never shown in messages. Empty: there is none."""

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def about(text: str) -> Meta:
    """The one text about a setting that users see."""
    return Meta(description=text)


def parts(kind: Any) -> tuple[Any, tuple[Meta, ...]]:
    """A type without what `Annotated` says of it, and that."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return inner, tuple(note for note in notes if isinstance(note, Meta))
    return kind, ()


def help_of(kind: Any) -> str:
    """What `about` said of it."""
    return next((note.description for note in parts(kind)[1] if note.description), "")


def is_secret(kind: Any) -> bool:
    return any((note.extra or {}).get("secret") for note in parts(kind)[1])


def in_words(kind: Any) -> str:
    """For example `whole number (0 to 65535)`."""
    inner, notes = parts(kind)
    for note in notes:
        if note.title:
            return note.title
    limits = ", ".join(limit for note in notes for limit in _limits(note))
    return _name(inner) + (f" ({limits})" if limits else "")


def _name(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) or '""' for choice in args)
    if origin is tuple:
        return "list of " + in_words(args[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {in_words(args[0])} to {in_words(args[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(choice) for choice in args)
    return _NAMES.get(kind, "nothing" if kind is type(None) else str(kind.__name__))


def _limits(note: Meta) -> Iterator[str]:
    if note.ge is not None and note.le is not None and note.le != _LARGEST:
        yield f"{note.ge:.10g} to {note.le:.10g}"
        return
    for sign, word in _SIGNS.items():
        limit = getattr(note, sign)
        if limit is not None and abs(limit) != _LARGEST:
            yield f"{word} {limit:.10g}"
