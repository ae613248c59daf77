"""Whose turn a stateless request is: from what agents send of themselves, and from its tokens.

    identify   headers and body         ─▶ Identity: a family, perhaps one chain of it, the rule
    match      Identity, known chains   ─▶ the chain that the request goes on with, or a new one

An id names a *family* within one owner: a conversation with its sub-agents, title calls and
compactions. Which of the family's chains a request belongs to its tokens say: the one that it
extends. One that extends none starts a new chain; nothing is ever refused. Ids of one owner mean
nothing to another, so only chains of the request's owner are given to `match`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_ID = 256
"""Characters of an id; longer ones are ignored, as are those that are not printable."""


class Rule(StrEnum):
    """What told the family, in the order in which they are tried."""

    EXPLICIT = "explicit"
    DYNAMO = "dynamo"
    CLAUDE_CODE = "claude_code"
    CODEX = "codex"
    OPENCODE = "opencode"
    GENERIC = "generic"
    INFERRED = "inferred"


@dataclass(frozen=True)
class Identity:
    """family: its id; empty: none was sent. chain: name of one chain of the family, where the agent
    tells them apart. parent: id of the chain or family that this one comes from. final: nothing
    will come after this. kind: what the request is for, in the agent's own word. source: the header
    or field that was read."""

    rule: Rule
    family: str = ""
    chain: str = ""
    parent: str = ""
    final: bool = False
    kind: str = ""
    source: str = ""


@dataclass(frozen=True)
class KnownChain:
    """A chain of the request's owner. shared: tokens that the request's prompt has in common with
    it, from the start. needed: so many have to be, for the request to go on with it."""

    key: str
    family: str
    name: str
    shared: int
    needed: int

    @property
    def extended(self) -> bool:
        return self.shared > 0 and self.shared >= self.needed


@dataclass(frozen=True)
class Match:
    """chain: key of the one that goes on; null: a new one of `family` (empty: of none) and `name`.
    nearest: key of the one that shares most tokens with it. rule: what counted in the end."""

    rule: Rule
    chain: str | None
    family: str
    name: str
    nearest: str | None


def identify(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity:
    """`headers` by lower-case name; `body`: the fields of the request's JSON object. What makes no
    sense is as if it had not been sent."""
    for rule in (_explicit, _dynamo, _claude_code, _codex, _opencode, _generic):
        if (found := rule(headers, body)) is not None:
            return found
    return Identity(Rule.INFERRED)


def match(identity: Identity, chains: Sequence[KnownChain]) -> Match:
    """The chain that a request goes on with, of those of its owner."""
    nearest = max((c for c in chains if c.shared), key=lambda c: c.shared, default=None)
    family = [c for c in chains if identity.family and c.family == identity.family]
    chain = _extended(c for c in family if not identity.chain or c.name in ("", identity.chain))
    rule, new_family = identity.rule, identity.family
    if chain is None and rule in (Rule.GENERIC, Rule.INFERRED):
        # A generic id may be one of a tenant, a route or a single request: the tokens decide.
        chain = _extended(chains)
        if chain is not None or family or rule == Rule.INFERRED:
            rule, new_family = Rule.INFERRED, ""
    near = None if nearest is None else nearest.key
    if chain is not None:
        return Match(rule, chain.key, chain.family, chain.name, near)
    return Match(rule, None, new_family, identity.chain if new_family else "", near)


def _extended(chains: Iterable[KnownChain]) -> KnownChain | None:
    """The chain of which the request repeats most."""
    return max((c for c in chains if c.extended), key=lambda c: c.shared, default=None)


def _explicit(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    extra = body.get("extra_body")
    extra = extra if isinstance(extra, Mapping) else {}
    for fields, where in ((body, ""), (extra, "extra_body.")):
        if family := _id(fields.get("session_id")):
            parent = _id(body.get("parent_session_id")) or _id(extra.get("parent_session_id"))
            return Identity(Rule.EXPLICIT, family, parent=parent, source=f"body {where}session_id")
    return None


def _dynamo(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    family = _id(headers.get("x-dynamo-session-id"))
    if not family:
        return None
    return Identity(
        Rule.DYNAMO,
        family,
        parent=_id(headers.get("x-dynamo-parent-session-id")),
        final=headers.get("x-dynamo-session-final", "").strip().lower() in ("true", "1"),
        source="x-dynamo-session-id",
    )


def _claude_code(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    """One id for the agent and its sub-agents, which run in one process and have names of their
    own."""
    source = "x-claude-code-session-id"
    family = _id(headers.get(source))
    if not family:
        metadata = body.get("metadata")
        user_id = metadata.get("user_id") if isinstance(metadata, Mapping) else None
        family, source = _session_of_user(user_id), "body metadata.user_id"
    if not family:
        return None
    return Identity(
        Rule.CLAUDE_CODE,
        family,
        chain=_id(headers.get("x-claude-code-agent-id")),
        parent=_id(headers.get("x-claude-code-parent-agent-id")),
        source=source,
    )


def _codex(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    """A thread is one chain, the session the whole family. `prompt_cache_key` is OpenAI's field for
    anybody: it counts where the request is Codex's by another sign."""
    thread, session = _id(headers.get("thread-id")), _id(headers.get("session-id"))
    signs = [name for name in headers if name.startswith("x-codex-")]
    family, source = session or thread, "session-id" if session else "thread-id"
    if not family and signs:
        family, source = _id(body.get("prompt_cache_key")), "body prompt_cache_key"
    if not family:
        return None
    turn = _object(headers.get("x-codex-turn-metadata"))
    parent = headers.get("x-codex-parent-thread-id") or turn.get("forked_from_thread_id")
    kind = turn.get("request_kind") or headers.get("x-openai-subagent")
    return Identity(
        Rule.CODEX, family, chain=thread, parent=_id(parent), kind=_id(kind), source=source
    )


def _opencode(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    """Sources disagree on the name of its header. `x-session-id` is everybody's, and OpenCode's
    only where another sign says so."""
    parents = ("x-parent-session-id", "x-opencode-parent-session")
    parent = next((found for name in parents if (found := _id(headers.get(name)))), "")
    names = ["x-session-affinity"]
    if parent or "opencode" in headers.get("user-agent", "").lower():
        names.append("x-session-id")
    for name in names:
        if family := _id(headers.get(name)):
            return Identity(Rule.OPENCODE, family, parent=parent, source=name)
    return None


def _generic(headers: Mapping[str, str], body: Mapping[str, object]) -> Identity | None:
    for name in GENERIC_HEADERS:
        if family := _id(headers.get(name)):
            return Identity(Rule.GENERIC, family, source=name)
    return None


GENERIC_HEADERS = (
    "x-session-id",
    "session_id",
    "x-session-token",
    "x-smg-routing-key",
    "x-aibrix-session-key",
    "x-correlation-id",
)

_USER_OF_SESSION = re.compile(r"user_\w*_session_([0-9a-fA-F-]{8,64})")
"""How older Claude Code spells its session within the id of its user."""


def _session_of_user(user_id: object) -> str:
    """A JSON object with a session_id, or the older spelling."""
    if not isinstance(user_id, str):
        return ""
    if found := _USER_OF_SESSION.fullmatch(user_id):
        return _id(found[1])
    return _id(_object(user_id).get("session_id"))


def _object(text: object) -> Mapping[str, object]:
    if not isinstance(text, str) or len(text) > 16_384:
        return {}
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _id(value: object) -> str:
    """`value` as an id; empty where it cannot be one."""
    text = value.strip() if isinstance(value, str) else ""
    return text if len(text) <= MAX_ID and text.isprintable() else ""
