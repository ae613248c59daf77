"""What both clients of the session API share: the calls, the answers, errors on either side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from agent_runtime.config import RouterConfig
from agent_runtime.settings import KEY_VARIABLE
from agent_runtime.sse import SseParser
from agent_runtime.trajectory.model import PlacementRecord, Timing, Usage
from dualpath_sglang.contract import errors
from dualpath_sglang.contract.errors import DualPathError, RouterFailure, Saturated

TIMEOUT_S = RouterConfig().turn_deadline_s + 30
"""Silence after which a call is given up: longer than the router lets a turn take."""
CONNECT_TIMEOUT_S = 10.0
T = TypeVar("T")


class TurnOptions(TypedDict, total=False):
    """The body of a turn; exactly one of `token_ids`, `text` and `messages` must be there.

    `sampling` has SGLang's names; `keep` counts history tokens; `deadline_s` is in seconds.
    """

    token_ids: list[int]
    text: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]
    keep: int
    if_turn: int
    max_new_tokens: int
    sampling: dict[str, Any]
    keep_partial: bool
    on_template_rewrite: Literal["error", "cut"]
    deadline_s: float


class SessionInfo(Struct, frozen=True):
    """`turns`: finished ones, so also the number of the next. `created_at`: seconds since 1970."""

    session_id: str
    created_at: float
    metadata: Mapping[str, Any]
    turns: int
    history_tokens: int
    busy: bool


class TurnStarted(Struct, frozen=True):
    """The turn has its engines."""

    turn: int
    prompt_tokens: int


class NewTokens(Struct, frozen=True):
    token_ids: list[int]
    text: str


class TurnDone(Struct, frozen=True):
    """A finished turn; `replayed`: it had been finished before, under the same key."""

    session_id: str
    turn: int
    prompt_tokens: int
    token_ids: list[int]
    text: str
    finish_reason: str
    history_tokens: int
    replayed: bool
    usage: Usage
    placement: PlacementRecord
    timing: Timing


TurnEvent = TurnStarted | NewTokens | TurnDone


class _History(Struct):
    token_ids: list[int]


class _Flushed(Struct):
    flushed: list[str]


class _Ready(Struct):
    ready: bool


class _Failure(Struct):
    type: str
    message: str
    field: str | None = None
    request_id: str | None = None


class _Refusal(Struct):
    error: _Failure


# A newer router may send more than these know.
_session = msgspec.json.Decoder(SessionInfo).decode
_started = msgspec.json.Decoder(TurnStarted).decode
_tokens = msgspec.json.Decoder(NewTokens).decode
_done = msgspec.json.Decoder(TurnDone).decode
_history = msgspec.json.Decoder(_History).decode
_flushed = msgspec.json.Decoder(_Flushed).decode
_ready = msgspec.json.Decoder(_Ready).decode
_refusal = msgspec.json.Decoder(_Refusal).decode


@dataclass(frozen=True)
class Reply:
    """An answer that has been read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how its answer is read; `also_fine`: statuses that are no failure."""

    method: str
    path: str
    parse: Callable[[bytes], T]
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    also_fine: tuple[int, ...] = ()

    def all_headers(self, api_key: str | None) -> dict[str, str]:
        key = {} if not api_key else {"Authorization": f"Bearer {api_key}"}
        return {"Content-Type": "application/json", **key, **self.headers}

    def read(self, reply: Reply) -> T:
        """Raises what the router answered."""
        if reply.status >= 300 and reply.status not in self.also_fine:
            raise _refused(reply)
        return self.parse(reply.body)


def key_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """The header of the key that the environment names, for requests of other kinds."""
    key = environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def create(session_id: str | None, metadata: Mapping[str, Any] | None) -> Call[SessionInfo]:
    body: dict[str, Any] = {"metadata": dict(metadata or {})}
    if session_id is not None:
        body["session_id"] = session_id
    return Call("POST", "/v1/sessions", _session, _json(body))


def show(session_id: str) -> Call[SessionInfo]:
    return Call("GET", _path(session_id), _session)


def history(session_id: str) -> Call[list[int]]:
    path = f"{_path(session_id)}?include=token_ids"
    return Call("GET", path, lambda body: _history(body).token_ids)


def delete(session_id: str) -> Call[None]:
    return Call("DELETE", _path(session_id), lambda _: None)


def turn(
    session_id: str, key: str | None, options: TurnOptions, *, stream: bool = False
) -> Call[TurnDone]:
    headers = {} if key is None else {"Idempotency-Key": key}
    content = _json({**options, "stream": stream})
    return Call("POST", f"{_path(session_id)}/turns", _done, content, headers)


def flush() -> Call[list[str]]:
    return Call("POST", "/admin/flush_cache", lambda body: _flushed(body).flushed)


def ready() -> Call[bool]:
    return Call("GET", "/ready", lambda body: _ready(body).ready, also_fine=(503,))


class Events:
    """The events of one turn, from chunks of bytes."""

    def __init__(self) -> None:
        self._parser = SseParser()
        self._done = False

    def feed(self, data: bytes) -> Iterator[TurnEvent]:
        """Raises what an `error` event says."""
        for name, tree in self._parser.feed(data):
            yield self._event(name, tree)

    def end(self) -> None:
        """The connection has ended. Raises RouterFailure if the turn had not."""
        if not self._done:
            raise RouterFailure("the stream ended before the turn was done")

    def _event(self, name: str, data: bytes) -> TurnEvent:
        match name:
            case "tokens":
                return _tokens(data)
            case "turn.started":
                return _started(data)
            case "turn.done":
                self._done = True
                return _done(data)
            case "error":
                raise _failure(_refusal(data).error, errors.Internal)
        raise RouterFailure(f"the router sent an event {name!r}: is it newer than this?")


def makes_no_sense(error: Exception) -> RouterFailure:
    return RouterFailure(f"the answer makes no sense: {error!r}")


def _refused(reply: Reply) -> DualPathError:
    otherwise = errors.ClientError if reply.status < 500 else RouterFailure
    try:
        failure = _failure(_refusal(reply.body).error, otherwise)
    except msgspec.DecodeError:
        text = reply.body.decode(errors="replace")
        return otherwise(f"HTTP {reply.status}: {text[:300]}")
    if isinstance(failure, Saturated):
        failure.retry_after_s = float(reply.headers.get("retry-after", failure.retry_after_s))
    return failure


def _failure(said: _Failure, otherwise: type[DualPathError]) -> DualPathError:
    failure = _KINDS.get(said.type, otherwise)(said.message, field=said.field)
    failure.add_note(f"request {said.request_id}")
    return failure


_LEAVES = (kind for kind in vars(errors).values() if isinstance(kind, type))
_KINDS = {kind.kind: kind for kind in _LEAVES if issubclass(kind, DualPathError)}
"""Where a leaf shares its kind with a branch above it, the leaf stands later in the file."""


def _json(body: Mapping[str, Any]) -> bytes:
    """Raises TypeError, ValueError for what JSON does not have."""
    return json.dumps(body, allow_nan=False).encode()


def _path(session_id: str) -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}"
