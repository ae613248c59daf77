"""What both clients of the session API share: the calls, the answers, errors on either side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from agent_runtime.config import RouterConfig
from agent_runtime.trajectory.model import PlacementRecord, Tiers, Timing, Usage
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


@dataclass(frozen=True)
class SessionInfo:
    """`turns`: finished ones, so also the number of the next. `created_at`: seconds since 1970."""

    session_id: str
    created_at: float
    metadata: Mapping[str, Any]
    turns: int
    history_tokens: int
    busy: bool


@dataclass(frozen=True)
class TurnStarted:
    """The turn has its engines."""

    turn: int
    prompt_tokens: int


@dataclass(frozen=True)
class NewTokens:
    token_ids: list[int]
    text: str


@dataclass(frozen=True)
class TurnDone:
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


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how its answer is read; `also_fine`: statuses that are no failure."""

    method: str
    path: str
    parse: Callable[[Any], T]
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    also_fine: tuple[int, ...] = ()

    def request(self) -> dict[str, Any]:
        """Arguments of httpx's `request` and `stream`."""
        headers = {"Content-Type": "application/json", **self.headers}
        return {
            "method": self.method,
            "url": self.path,
            "content": self.content,
            "headers": headers,
        }

    def read(self, reply: httpx.Response) -> T:
        """Raises what the router answered; needs the whole body."""
        if reply.status_code >= 300 and reply.status_code not in self.also_fine:
            raise _refusal(reply)
        return self.parse(json.loads(reply.content) if reply.content else None)


def create(session_id: str | None, metadata: Mapping[str, Any] | None) -> Call[SessionInfo]:
    body: dict[str, Any] = {"metadata": dict(metadata or {})}
    if session_id is not None:
        body["session_id"] = session_id
    return Call("POST", "/v1/sessions", _session, _json(body))


def show(session_id: str) -> Call[SessionInfo]:
    return Call("GET", _path(session_id), _session)


def history(session_id: str) -> Call[list[int]]:
    path = f"{_path(session_id)}?include=token_ids"
    return Call("GET", path, lambda tree: list(tree["token_ids"]))


def delete(session_id: str) -> Call[None]:
    return Call("DELETE", _path(session_id), lambda _: None)


def turn(
    session_id: str, key: str | None, options: TurnOptions, *, stream: bool = False
) -> Call[TurnDone]:
    headers = {} if key is None else {"Idempotency-Key": key}
    content = _json({**options, "stream": stream})
    return Call("POST", f"{_path(session_id)}/turns", _done, content, headers)


def flush() -> Call[list[str]]:
    return Call("POST", "/admin/flush_cache", lambda tree: list(tree["flushed"]))


def ready() -> Call[bool]:
    return Call("GET", "/ready", lambda tree: bool(tree["ready"]), also_fine=(503,))


class Events:
    """Server-sent events from chunks of bytes, however they are cut.

    Split at bytes and not by httpx's lines: those also end at U+2028 and others, which the text
    of a model may hold.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._done = False

    def feed(self, data: bytes) -> Iterator[TurnEvent]:
        """Raises what an `error` event says."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            lines = dict(line.split(b": ", 1) for line in block.split(b"\n") if line)
            if lines:  # else a heartbeat
                yield self._event(lines[b"event"], json.loads(lines[b"data"]))

    def end(self) -> None:
        """The connection has ended. Raises RouterFailure if the turn had not."""
        if not self._done:
            raise RouterFailure("the stream ended before the turn was done")

    def _event(self, name: bytes, tree: dict[str, Any]) -> TurnEvent:
        match name:
            case b"turn.started":
                return TurnStarted(tree["turn"], tree["prompt_tokens"])
            case b"tokens":
                return NewTokens(tree["token_ids"], tree["text"])
            case b"turn.done":
                self._done = True
                return _done(tree)
            case b"error":
                raise _failure(tree["error"], errors.Internal)
        raise RouterFailure(f"the router sent an event {name.decode()!r}: is it newer than this?")


@contextmanager
def mapped() -> Iterator[None]:
    """What goes wrong between the client and the router is a RouterFailure."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise RouterFailure(f"no answer in time ({type(error).__name__})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RouterFailure(f"{type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RouterFailure(f"the answer makes no sense: {error!r}") from error


def timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S))


def _refusal(reply: httpx.Response) -> DualPathError:
    otherwise = errors.ClientError if reply.status_code < 500 else RouterFailure
    try:
        failure = _failure(json.loads(reply.content)["error"], otherwise)
    except (ValueError, KeyError, TypeError, AttributeError):
        return otherwise(f"HTTP {reply.status_code}: {reply.text[:300]}")
    if isinstance(failure, Saturated):
        failure.retry_after_s = float(reply.headers.get("retry-after", failure.retry_after_s))
    return failure


def _failure(tree: Mapping[str, Any], otherwise: type[DualPathError]) -> DualPathError:
    kind = _KINDS.get(tree["type"], otherwise)
    failure = kind(str(tree["message"]), field=tree.get("field"))
    failure.add_note(f"request {tree.get('request_id')}")
    return failure


_LEAVES = (kind for kind in vars(errors).values() if isinstance(kind, type))
_KINDS = {kind.kind: kind for kind in _LEAVES if issubclass(kind, DualPathError)}
"""Where a leaf shares its kind with a branch above it, the leaf stands later in the file."""


def _json(body: Mapping[str, Any]) -> bytes:
    """Raises TypeError, ValueError for what JSON does not have."""
    return json.dumps(body, allow_nan=False).encode()


def _path(session_id: str) -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}"


def _made(kind: type[T], tree: Mapping[str, Any]) -> T:
    """`kind` from those of its fields that the answer has; a newer router may send more."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in tree.items() if name in names})


def _session(tree: Mapping[str, Any]) -> SessionInfo:
    return _made(SessionInfo, tree)


def _done(tree: Mapping[str, Any]) -> TurnDone:
    usage = tree["usage"]
    tiers = {
        "prefill": _made(Tiers, usage["prefill"]),
        "decode": None if usage["decode"] is None else _made(Tiers, usage["decode"]),
    }
    inner = {
        "usage": _made(Usage, {**usage, **tiers}),
        "placement": _made(PlacementRecord, tree["placement"]),
        "timing": _made(Timing, tree["timing"]),
    }
    return _made(TurnDone, {**tree, **inner})
