"""The words of a session: what a turn asks for, what it did, and what is kept of it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent_runtime.owners import ANONYMOUS
from dualpath_sglang.contract.ids import OwnerId, SessionId
from dualpath_sglang.contract.render import Message, OnRewrite


@dataclass(frozen=True)
class TokenInput:
    token_ids: array[int]


@dataclass(frozen=True)
class TextInput:
    text: str


@dataclass(frozen=True)
class MessagesInput:
    """`tools` and `template_kwargs` reach the template; they must be those of earlier turns."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


TurnInput = TokenInput | TextInput | MessagesInput


@dataclass(frozen=True)
class TurnRequest:
    """What a client asks for. `sampling` holds SGLang's names as they were given, and stands below
    `sampling_prefix` in the client's body; `digest` identifies the body.

    `keep`: tokens of the history that stay before appending (null: all of them).
    """

    input: TurnInput
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    sampling_prefix: str = ""
    keep: int | None = None
    if_turn: int | None = None
    keep_partial: bool = False
    deadline_s: float | None = None
    on_template_rewrite: OnRewrite = "error"
    idempotency_key: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class Tiers:
    """Prompt tokens that an engine found cached, by where it found them (`peer`: in the memory
    of the other engine)."""

    device: int = 0
    host: int = 0
    storage: int = 0
    peer: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.storage + self.peer


@dataclass(frozen=True)
class Usage:
    """`prefill` is what P found, `decode` what D found (null: D does not report it).

    `load`: by engine role, what the plugin says of loading: bytes read from the store and from
    the peer, seconds, and why a plan was not followed.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill: Tiers
    decode: Tiers | None
    load: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens


@dataclass(frozen=True)
class PlacementRecord:
    """`split` of `pages` stored pages were the decode side's to read (null: there was no plan)."""

    prefill: str
    decode: str
    split: int | None
    reason: str
    pages: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds. `ttft_s` counts from the arrival of the turn, queueing included."""

    queued_s: float
    ttft_s: float | None
    e2e_s: float


@dataclass(frozen=True)
class ChatPart:
    """What a messages turn adds to the conversation.

    `after`: the messages turn that it goes on from (null: a new rendering starts here).
    `keep_chars`: characters of the conversation's text so far that stay. `output_text` and
    `output_content`: null until the renderer has decoded the output (it may have been away).
    """

    after: int | None
    keep_chars: int
    messages: tuple[Message, ...]
    input_text: str
    output_text: str | None = None
    output_content: str | None = None


@dataclass(frozen=True)
class TurnRecord:
    """One finished turn: `history = history[:kept] + input + output`.

    `finish_reason` is SGLang's (stop, length), or `partial` for a turn that ended early and was
    kept because of `keep_partial`; `matched` is the token id, stop string or pattern that ended it.
    """

    turn: int
    kept: int
    input: array[int]
    output: array[int]
    text: str
    finish_reason: str
    usage: Usage
    placement: PlacementRecord
    timing: Timing
    chat: ChatPart | None = None
    matched: int | str | None = None
    idempotency_key: str | None = None
    digest: str = ""

    @property
    def prompt_tokens(self) -> int:
        return self.kept + len(self.input)

    @property
    def history_tokens(self) -> int:
        """Length of the history after this turn."""
        return self.prompt_tokens + len(self.output)


class SessionName(NamedTuple):
    """What no two sessions share. The ids of another owner's sessions are free."""

    owner: OwnerId
    id: SessionId


@dataclass(frozen=True)
class SessionHead:
    """What a session is, apart from its turns. `created_at`: seconds since 1970, UTC."""

    id: SessionId
    created_at: float
    metadata: Mapping[str, Any]
    owner: OwnerId = ANONYMOUS

    @property
    def name(self) -> SessionName:
        return SessionName(self.owner, self.id)


@dataclass(frozen=True)
class StoredSession:
    head: SessionHead
    turns: tuple[TurnRecord, ...]
