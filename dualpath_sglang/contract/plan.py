"""Who reads which pages of a prompt's cached prefix: one message, the same to P and to D.

    page 0            k               n          end
      |-- D stages ---|-- P reads ----|-- computed
      |-- P pulls ----|

It travels in `kv_hints` of SGLang's /generate, as an action of a versioned envelope
(`managers/kv_hints.py`); `plan.schema.json` beside this file is its schema. A plan is advice: with
any plan, a wrong one or none an engine gives the right tokens. So nothing here raises for what it
is given. What cannot be used is ignored, what is out of range is clamped, and both are counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

PROTOCOL_VERSION = "1"
ACTION_TYPE = "dualpath.plan"
ACTION_VERSION = "1"
ACTION_ID = "plan"

MAX_PAGES = 2**31 - 1
MAX_PAGE_TOKENS = 2**16
MAX_DEADLINE_MS = 600_000
MAX_PEERS = 1024
PEER = re.compile(r"(?:[0-9a-zA-Z_.-]{1,255}|\[[0-9a-fA-F:.]{2,64}\]):([0-9]{1,5})")

Counters = MutableMapping[str, int]
"""Reason -> how often; a `collections.Counter` fits."""

MALFORMED_ENVELOPE = "malformed_envelope"
UNKNOWN_ACTION = "unknown_action"
UNKNOWN_VERSION = "unknown_version"
REPEATED_PLAN = "repeated_plan"
MALFORMED_PLAN = "malformed_plan"
PAGE_MISMATCH = "page_mismatch"
CLAMPED_N = "clamped_n"
CLAMPED_K = "clamped_k"
CLAMPED_DEADLINE = "clamped_deadline"
CLAMPED_PEER = "clamped_peer"
IGNORED = (
    MALFORMED_ENVELOPE,
    UNKNOWN_ACTION,
    UNKNOWN_VERSION,
    REPEATED_PLAN,
    MALFORMED_PLAN,
    PAGE_MISMATCH,
)
CLAMPED = (CLAMPED_N, CLAMPED_K, CLAMPED_DEADLINE, CLAMPED_PEER)


class Plan(Struct, frozen=True):
    """0 <= k <= n, in pages of `page` tokens from page 0 of the prompt.

    n: leading pages that are in the store. k: pages that D stages and P pulls from it; P reads
    [k, n) itself. peer: `host:port` of D's export server for each rank. deadline_ms: counts from
    the moment an engine receives the plan. fingerprint: of the decode engine (`EngineInfo`).
    An exchange between P and D is known by bootstrap room and plan_id.
    """

    plan_id: str
    n: int
    k: int
    page: int
    peer: tuple[str, ...]
    deadline_ms: int
    fingerprint: str


def to_kv_hints(plan: Plan) -> dict[str, Any]:
    """The envelope that goes into both bodies."""
    payload = asdict(plan) | {"peer": list(plan.peer)}
    action = {
        "action_id": ACTION_ID,
        "action_type": ACTION_TYPE,
        "action_version": ACTION_VERSION,
        "payload": payload,
    }
    return {
        "protocol_version": PROTOCOL_VERSION,
        "message_id": plan.plan_id,
        "actions": [action],
    }


def parse_kv_hints(hints: object, counters: Counters) -> Plan | None:
    """The first usable plan in an envelope, as SGLang's structs or as plain JSON.

    None and nothing counted when there are no hints. Actions of others are ignored and counted.
    """
    if hints is None:
        return None
    actions = _get(hints, "actions")
    if not isinstance(actions, list | tuple):
        return _ignored(MALFORMED_ENVELOPE, counters)
    if _get(hints, "protocol_version") != PROTOCOL_VERSION:
        return _ignored(UNKNOWN_VERSION, counters)
    plan = None
    for action in actions:
        if plan is not None and _get(action, "action_type") == ACTION_TYPE:
            _ignored(REPEATED_PLAN, counters)
        else:
            plan = _plan_of(action, counters) or plan
    return plan


def clamp(plan: Plan, prompt_tokens: int, page_size: int, counters: Counters) -> Plan | None:
    """`plan` made to fit this engine and prompt: n <= (prompt_tokens - 1) // page.

    The last token is always computed, so that page cannot be loaded whole. Where an engine may
    match less (log-probabilities of the prompt), give that length plus 1 as `prompt_tokens`.
    """
    if plan.page != page_size:
        return _ignored(PAGE_MISMATCH, counters)
    n = _within(plan.n, 0, max(0, prompt_tokens - 1) // page_size, CLAMPED_N, counters)
    k = _within(plan.k, 0, n, CLAMPED_K, counters)
    return replace(plan, n=n, k=k)


def _plan_of(action: object, counters: Counters) -> Plan | None:
    if _get(action, "action_type") != ACTION_TYPE:
        return _ignored(UNKNOWN_ACTION, counters)
    if _get(action, "action_version") != ACTION_VERSION:
        return _ignored(UNKNOWN_VERSION, counters)
    try:
        given = msgspec.convert(_get(action, "payload"), _Payload)
    except msgspec.ValidationError:
        return _ignored(MALFORMED_PLAN, counters)
    n = _within(given.n, 0, MAX_PAGES, CLAMPED_N, counters)
    k = _within(given.k, 0, n, CLAMPED_K, counters)
    peer = _ranks(given.peer)
    if peer is None or (k > 0 and not peer):
        # Nobody to pull from: P reads all of it.
        _count(CLAMPED_PEER, counters)
        k, peer = 0, ()
    deadline = _within(given.deadline_ms, 1, MAX_DEADLINE_MS, CLAMPED_DEADLINE, counters)
    return Plan(given.plan_id, n, k, given.page, peer, deadline, given.fingerprint)


class _Payload(Struct):
    """Right types, and values that no clamping could mend. Unknown fields are let pass."""

    plan_id: Annotated[str, Meta(pattern=r"^[0-9a-zA-Z_.-]{1,64}\Z")]
    n: int
    k: int
    page: Annotated[int, Meta(ge=1, le=MAX_PAGE_TOKENS)]
    peer: list[Any]
    deadline_ms: int
    fingerprint: Annotated[str, Meta(pattern=r"^[ -~]{0,256}\Z")]


def _ranks(given: list[Any]) -> tuple[str, ...] | None:
    """None when one of them is no `host:port`: ranks pair by position, so none can be left out."""
    usable = len(given) <= MAX_PEERS and all(_is_peer(rank) for rank in given)
    return tuple(given) if usable else None


def _is_peer(peer: object) -> bool:
    found = PEER.fullmatch(peer) if isinstance(peer, str) else None
    return found is not None and 0 < int(found[1]) < 2**16


def _within(value: int, low: int, high: int, reason: str, counters: Counters) -> int:
    clamped = min(max(value, low), high)
    if clamped != value:
        _count(reason, counters)
    return clamped


def _get(holder: object, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _ignored(reason: str, counters: Counters) -> Plan | None:
    _count(reason, counters)
    return None


def _count(reason: str, counters: Counters) -> None:
    counters[reason] = counters.get(reason, 0) + 1
