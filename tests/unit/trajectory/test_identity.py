"""Whose turn a request is: what agents send, row by row and in order, and what the tokens say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.trajectory.identity import (
    GENERIC_HEADERS,
    MAX_ID,
    Identity,
    KnownChain,
    Rule,
    identify,
    match,
)

USER = {"user_id": json.dumps({"device_id": "d", "session_id": "meta"})}
OLD_USER = {"user_id": "user_0a1b_account__session_0123abcd-0000-4000-8000-0123456789ab"}
FORKED = json.dumps({"forked_from_thread_id": "t0", "request_kind": "compaction"})


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, {"session_id": "a"}, Identity(Rule.EXPLICIT, "a", source="body session_id")),
        (
            {},
            {"extra_body": {"session_id": "a", "parent_session_id": "p"}},
            Identity(Rule.EXPLICIT, "a", parent="p", source="body extra_body.session_id"),
        ),
        (
            {"x-dynamo-session-id": "a", "x-dynamo-parent-session-id": "p"},
            {},
            Identity(Rule.DYNAMO, "a", parent="p", source="x-dynamo-session-id"),
        ),
        (
            {"x-dynamo-session-id": "a", "x-dynamo-session-final": "True"},
            {},
            Identity(Rule.DYNAMO, "a", final=True, source="x-dynamo-session-id"),
        ),
        (
            {
                "x-claude-code-session-id": "a",
                "x-claude-code-agent-id": "child",
                "x-claude-code-parent-agent-id": "root",
            },
            {"metadata": USER},
            Identity(Rule.CLAUDE_CODE, "a", "child", "root", source="x-claude-code-session-id"),
        ),
        (
            {},
            {"metadata": USER},
            Identity(Rule.CLAUDE_CODE, "meta", source="body metadata.user_id"),
        ),
        (
            {},
            {"metadata": OLD_USER},
            Identity(
                Rule.CLAUDE_CODE,
                "0123abcd-0000-4000-8000-0123456789ab",
                source="body metadata.user_id",
            ),
        ),
        (
            {"thread-id": "t1", "session-id": "root", "x-codex-parent-thread-id": "t0"},
            {"prompt_cache_key": "t1"},
            Identity(Rule.CODEX, "root", "t1", "t0", source="session-id"),
        ),
        ({"thread-id": "t1"}, {}, Identity(Rule.CODEX, "t1", "t1", source="thread-id")),
        (
            {"thread-id": "t1", "x-codex-turn-metadata": FORKED},
            {},
            Identity(Rule.CODEX, "t1", "t1", "t0", kind="compaction", source="thread-id"),
        ),
        (
            {"session-id": "root", "x-openai-subagent": "review"},
            {},
            Identity(Rule.CODEX, "root", kind="review", source="session-id"),
        ),
        (
            {"x-codex-window-id": "w"},
            {"prompt_cache_key": "t1"},
            Identity(Rule.CODEX, "t1", source="body prompt_cache_key"),
        ),
        (
            {"x-session-affinity": "a", "x-parent-session-id": "p"},
            {},
            Identity(Rule.OPENCODE, "a", parent="p", source="x-session-affinity"),
        ),
        (
            {"x-session-id": "a", "x-opencode-parent-session": "p"},
            {},
            Identity(Rule.OPENCODE, "a", parent="p", source="x-session-id"),
        ),
        (
            {"x-session-id": "a", "user-agent": "opencode/1.0"},
            {},
            Identity(Rule.OPENCODE, "a", source="x-session-id"),
        ),
        *[
            ({name: " a "}, {}, Identity(Rule.GENERIC, "a", source=name))
            for name in GENERIC_HEADERS
        ],
        ({}, {"prompt_cache_key": "anybody's"}, Identity(Rule.INFERRED)),
        ({}, {}, Identity(Rule.INFERRED)),
    ],
)
def test_what_agents_send(
    headers: dict[str, str], body: dict[str, Any], expected: Identity
) -> None:
    assert identify(headers, body) == expected


def test_the_order_of_the_table() -> None:
    """Everything at once; then what counted is taken away, one after the other."""
    headers = {
        "x-dynamo-session-id": "2",
        "x-claude-code-session-id": "3",
        "session-id": "4",
        "x-session-affinity": "5",
        "x-session-id": "6",
    }
    body: dict[str, Any] = {"session_id": "1"}
    fired = []
    for name in ("", *headers):
        fired.append((rule := identify(headers, body)).rule)
        assert rule.family == str(len(fired))
        body = {}
        if len(fired) > 1:
            del headers[name]
    assert fired == list(Rule)[:6]


@pytest.mark.parametrize("value", ["", "  ", "x" * (MAX_ID + 1), "a\nb", None, 7, ["a"], {}])
def test_what_is_no_id_was_not_sent(value: Any) -> None:
    assert identify({}, {"session_id": value, "metadata": {"user_id": value}}).rule == Rule.INFERRED
    if isinstance(value, str):
        headers = dict.fromkeys(["x-dynamo-session-id", "thread-id", *GENERIC_HEADERS], value)
        assert identify(headers, {"extra_body": value}).rule == Rule.INFERRED


json_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=12), inner, max_size=2)
    ),
    max_leaves=5,
)
names = st.sampled_from(
    ["session_id", "parent_session_id", "extra_body", "metadata", "user_id", "prompt_cache_key"]
)


@given(
    st.dictionaries(
        st.sampled_from(["thread-id", "x-codex-turn-metadata", "x-session-affinity", "session-id"]),
        st.text(max_size=10),
    ),
    st.dictionaries(names, json_values, max_size=4),
)
def test_nothing_that_is_sent_makes_it_fail(headers: dict[str, str], body: dict[str, Any]) -> None:
    found = identify(headers, body)
    assert bool(found.family) == (found.rule != Rule.INFERRED)


def chain(key: str, shared: int, needed: int = 10, family: str = "", name: str = "") -> KnownChain:
    return KnownChain(key, family, name, shared, needed)


def went(identity: Identity, *chains: KnownChain) -> tuple[str | None, str, Rule]:
    found = match(identity, chains)
    return found.chain, found.family, found.rule


TRUSTED = Identity(Rule.EXPLICIT, "f")


def test_a_request_goes_on_with_the_chain_that_it_extends() -> None:
    main, side = chain("main", 100, 100, "f"), chain("side", 60, 50, "f")
    assert went(TRUSTED, main, side) == ("main", "f", Rule.EXPLICIT)
    assert went(TRUSTED, chain("main", 99, 100, "f"), side) == ("side", "f", Rule.EXPLICIT)


def test_one_that_extends_none_starts_a_new_chain_of_its_family() -> None:
    """A sub-agent, a title call, a compaction: never an error."""
    found = match(TRUSTED, [chain("main", 40, 100, "f"), chain("other", 70, 60, "g")])
    assert (found.chain, found.family, found.nearest) == (None, "f", "other")
    assert went(TRUSTED) == (None, "f", Rule.EXPLICIT)


def test_a_name_keeps_chains_of_a_family_apart() -> None:
    child = Identity(Rule.CODEX, "f", chain="t2")
    chains = [chain("a", 100, 90, "f", "t1"), chain("b", 100, 90, "f", "t2")]
    assert went(child, *chains) == ("b", "f", Rule.CODEX)
    forked = match(child, chains[:1])
    assert (forked.chain, forked.name, forked.nearest) == (None, "t2", "a")
    assert went(child, chain("unnamed", 100, 90, "f")) == ("unnamed", "f", Rule.CODEX)


GENERIC = Identity(Rule.GENERIC, "key")


def test_a_generic_id_counts_only_where_the_tokens_agree() -> None:
    assert went(GENERIC) == (None, "key", Rule.GENERIC), "the first of its kind"
    mine, other = chain("mine", 80, 70, "key"), chain("other", 90, 85)
    assert went(GENERIC, mine, other) == ("mine", "key", Rule.GENERIC)
    shared_key = chain("mine", 5, 70, "key")
    assert went(GENERIC, shared_key, other) == ("other", "", Rule.INFERRED)
    assert went(GENERIC, shared_key) == (None, "", Rule.INFERRED), "another conversation's key"


def test_an_id_per_request_does_not_tear_a_conversation() -> None:
    assert went(GENERIC, chain("a", 90, 85, "earlier key")) == ("a", "earlier key", Rule.INFERRED)


def test_without_an_id_the_tokens_decide() -> None:
    none = Identity(Rule.INFERRED)
    assert went(none) == (None, "", Rule.INFERRED)
    assert went(none, chain("a", 90, 85), chain("b", 95, 95, "f")) == ("b", "f", Rule.INFERRED)
    assert went(none, chain("a", 9, 85), chain("b", 0, 0)) == (None, "", Rule.INFERRED)


@given(
    st.sampled_from([TRUSTED, GENERIC, Identity(Rule.INFERRED), Identity(Rule.CODEX, "f", "t")]),
    st.lists(
        st.builds(
            KnownChain,
            key=st.text(min_size=1, max_size=3),
            family=st.sampled_from(["", "f", "key"]),
            name=st.sampled_from(["", "t", "u"]),
            shared=st.integers(0, 20),
            needed=st.integers(0, 20),
        ),
        max_size=6,
        unique_by=lambda one: one.key,
    ),
)
def test_a_match_is_always_a_chain_that_is_extended(
    identity: Identity, chains: list[KnownChain]
) -> None:
    found = match(identity, chains)
    by_key = {one.key: one for one in chains}
    if found.chain is not None:
        assert by_key[found.chain].extended
        if identity.rule not in (Rule.GENERIC, Rule.INFERRED):
            assert by_key[found.chain].family == identity.family, "an id is never left"
    elif identity.rule not in (Rule.GENERIC, Rule.INFERRED):
        assert found.family == identity.family
    if found.nearest is not None:
        assert by_key[found.nearest].shared == max(one.shared for one in chains)
