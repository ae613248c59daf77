"""What an engine says of its load all the time, and what a router may order ahead of a turn.

    engine ── EngineReport, EngineReport, ... ──▶ router      one stream per router and DP rank
    router ── Stage | Priority | Unpin ──▶ engine ── Answer ──▶ router

Amounts are tokens. One data-parallel rank reports for itself: its pools, its queues. A report is
true as of `age_s` before it was sent, and holds *every* unfinished request, so that a router can
tell which of its own turns are in it and count none twice; `finished` names those that ended
since the report before it on the same stream, also where reports in between were left out because
the reader was slow.

MessagePack, one message per frame. Unknown fields are let pass, missing or mistyped ones are not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.ids import RequestId

VERSION = 1
MAX_REQUESTS = 65_536
"""Unfinished requests in a report."""
MAX_ORDER_TOKENS = 4 * 1024 * 1024
"""Of one order: longer prompts than any model of today takes."""

Role = Literal["prefill", "decode"]
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Tokens = Annotated[tuple[Count, ...], Meta(max_length=MAX_ORDER_TOKENS)]


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """What a link or a processor does per second *while it is busy*.

    per_s: bytes, or tokens for computing. age_s: since the last sample. samples: how many it
    rests on; 0: none, and the other two mean nothing.
    """

    per_s: Amount = 0.0
    age_s: Amount = 0.0
    samples: Count = 0


class Unfinished(msgspec.Struct, frozen=True, array_like=True):
    """One request that this engine has and has not ended.

    tokens: of its prompt, cached and new. store, peer: still to read from the store and to pull
    from the other engine. compute: still to compute (prefill).
    """

    id: RequestId
    tokens: Count
    store: Count = 0
    peer: Count = 0
    compute: Count = 0


class Memory(msgspec.Struct, frozen=True):
    """Tokens of KV in this rank's pools, as they are now.

    device_free counts what eviction could free. loadable: what may be loaded into host memory at
    once (P: its prefetch share, D: its pin share), load_limit: when nothing is loading.
    staged: loaded ahead of a turn; pinned: held for one.
    """

    device_free: Count
    device_pool: Count
    host_free: Count
    host_pool: Count
    loadable: Count
    load_limit: Count
    staged: Count = 0
    pinned: Count = 0


class Progress(msgspec.Struct, frozen=True):
    """Seconds since the last one was done, null: none yet. An engine that holds work and makes no
    progress is sick; one that is idle is not."""

    transfer_s: Amount | None = None
    load_s: Amount | None = None
    batch_s: Amount | None = None


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """number: counts up from the start of the engine, of which boot_nonce is new each time.

    node: the machine, whose ranks share a storage NIC. namespace: of its KV pages
    (`EngineInfo.fingerprint` and the weights). seq, tok: all unfinished requests and their prompt
    tokens. store_queue, peer_queue: all that is still to read and to pull, for requests and ahead.
    store, peer: bytes per busy second. compute: new tokens per busy second. hooks: all that the
    engine's mode asks for are live.
    """

    v: int = VERSION
    boot_nonce: str
    number: Count
    age_s: Amount
    role: Role
    dp_rank: Count = 0
    node: str = ""
    namespace: str = ""
    weight_version: str = ""
    hooks: bool = True
    seq: Count
    tok: Count
    store_queue: Count
    peer_queue: Count = 0
    store: Rate = Rate()
    peer: Rate = Rate()
    compute: Rate = Rate()
    memory: Memory
    progress: Progress = Progress()
    requests: Annotated[tuple[Unfinished, ...], Meta(max_length=MAX_REQUESTS)] = ()
    finished: tuple[RequestId, ...] = ()


class Stage(msgspec.Struct, frozen=True, tag="stage", kw_only=True):
    """Have the pages [first, last) of this prompt in host memory, pinned until `Unpin`, a plan that
    uses them, or the end of hold_s. At most as far as idle NIC time and memory allow."""

    id: str
    session: str
    token_ids: Tokens
    first: Count
    last: Count
    deadline_s: Amount
    hold_s: Amount


class Priority(msgspec.Struct, frozen=True, tag="priority", kw_only=True):
    """Evict the pages of this prompt after those of a lower value; 0 is that of all others."""

    id: str
    session: str
    token_ids: Tokens
    value: int


class Unpin(msgspec.Struct, frozen=True, tag="unpin", kw_only=True):
    """The session's staged pages are not waited for any longer."""

    id: str
    session: str


Order = Stage | Priority | Unpin


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one for each order. tokens: that are staged, reordered or unpinned. reason: why not
    all (`refused`: none)."""

    id: str
    outcome: Literal["done", "part", "refused"]
    tokens: Count = 0
    reason: str = ""


_report = msgspec.msgpack.Decoder(EngineReport)
_order = msgspec.msgpack.Decoder(Order)
_answer = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


def encode(message: EngineReport | Order | Answer) -> bytes:
    return _encoder.encode(message)


def decode_report(data: bytes) -> EngineReport:
    """Raises EngineFailure that names the field."""
    try:
        report = _report.decode(data)
    except msgspec.MsgspecError as error:
        raise EngineFailure(f"an engine report makes no sense: {error}") from error
    if report.v != VERSION:
        raise EngineFailure(f"engine report has version {report.v}, this router: {VERSION}")
    return report


def decode_order(data: bytes) -> Order:
    """Raises ValueError that names the field; the engine refuses what it cannot read."""
    try:
        order: Order = _order.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"an order makes no sense: {error}") from error
    if isinstance(order, Stage) and order.first > order.last:
        raise ValueError(f"first, last: [{order.first}, {order.last}) is no range of pages")
    return order


def decode_answer(data: bytes) -> Answer:
    """Raises EngineFailure that names the field."""
    try:
        return _answer.decode(data)
    except msgspec.MsgspecError as error:
        raise EngineFailure(f"an engine's answer makes no sense: {error}") from error
