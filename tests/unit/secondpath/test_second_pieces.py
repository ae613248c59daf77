"""Spans, bandwidth limit, holds, checksums, books and the message codec."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from second_doubles import Memory

from dualpath_sglang.contract.clock import ManualClock
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.checksum import page_sums
from dualpath_sglang.secondpath.faults import Faults
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.ledger import Books, differences
from dualpath_sglang.secondpath.pool import HostPool, entries
from dualpath_sglang.secondpath.protocol import (
    Alive,
    Done,
    End,
    Hello,
    Message,
    ProtocolError,
    Ready,
    Want,
    decode,
    encode,
)
from dualpath_sglang.secondpath.spans import Span, coalesce, runs

page_numbers = st.integers(0, 50)


# --- spans ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(page_numbers, page_numbers), max_size=60))
def test_coalescing_loses_no_pair_and_keeps_their_order(pairs: list[tuple[int, int]]) -> None:
    spans = coalesce([a for a, _ in pairs], [b for _, b in pairs])
    back = [(s.local + i, s.remote + i) for s in spans for i in range(s.pages)]
    assert back == pairs


def test_neighbours_on_both_sides_become_one_entry() -> None:
    assert coalesce([4, 5, 6, 9], [1, 2, 3, 4]) == [Span(4, 1, 3), Span(9, 4, 1)]
    assert coalesce([4, 5], [1, 3]) == [Span(4, 1, 1), Span(5, 3, 1)]


@settings(deadline=None)
@given(st.sets(page_numbers))
def test_runs_are_the_numbers_without_gaps(numbers: set[int]) -> None:
    found = runs(sorted(numbers))
    assert [n for run in found for n in run] == sorted(numbers)
    assert all(a.stop < b.start for a, b in itertools.pairwise(found))


def test_an_entry_covers_k_and_v_of_its_pages() -> None:
    here, there = HostPool(1000, 10, 500, 50, 16), HostPool(9000, 10, 70, 7, 16)
    made = entries([Span(3, 2, 4)], here, there)
    assert made.local == [1030, 1530]
    assert made.remote == [9020, 9090]
    assert made.lengths == [40, 40]


@pytest.mark.parametrize("span", [Span(0, 4, 4), Span(48, 0, 3), Span(0, -1, 1)])
def test_pages_outside_a_pool_are_refused(span: Span) -> None:
    with pytest.raises(ValueError, match="pages"):
        entries([span], HostPool(0, 10, 500, 50, 16), HostPool(0, 10, 70, 7, 16))


# --- bandwidth --------------------------------------------------------------------------------


def test_the_long_run_rate_holds() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000.0, clock)
    for _ in range(100):
        clock.advance(bucket.delay(100))
    assert clock.now() == pytest.approx(10.0, abs=0.2)


def test_a_limited_reader_moves_little_at_once() -> None:
    bucket = TokenBucket(100_000.0, ManualClock())
    assert bucket.quantum(1000, 128) == 5
    assert bucket.quantum(10**9, 128) == 1
    assert TokenBucket(0.0, ManualClock()).quantum(1000, 128) == 128


def test_without_a_rate_nothing_waits() -> None:
    bucket = TokenBucket(0.0, ManualClock())
    assert [bucket.delay(10**9) for _ in range(3)] == [0.0, 0.0, 0.0]


# --- holds ------------------------------------------------------------------------------------


def test_a_held_page_is_free_only_after_its_last_transfer() -> None:
    holds = PageHolds()
    holds.hold([1, 2])
    holds.hold([1])
    assert holds.retain([1, 2, 3]) == {1, 2}
    holds.release([1, 2])
    assert holds.take_freeable() == [2]
    assert holds.quarantined == {1}
    holds.release([1])
    assert holds.take_freeable() == [1]
    assert holds.quarantined == frozenset()
    assert holds.held == 0


def test_a_page_nobody_freed_is_not_given_back() -> None:
    holds = PageHolds()
    holds.hold([1])
    holds.release([1])
    assert holds.take_freeable() == []


# --- checksums --------------------------------------------------------------------------------


def test_any_changed_byte_of_k_or_v_changes_the_sum() -> None:
    memory = Memory(2)
    memory.fill(1, 3)
    before = page_sums(memory.pool, [1])
    for offset in (0, 63, 2 * 64, 2 * 64 + 63):
        at = 64 + offset
        old = memory.buffer[at]
        memory.buffer[at] = bytes([old[0] ^ 1])
        assert page_sums(memory.pool, [1]) != before
        memory.buffer[at] = old
    assert page_sums(memory.pool, [1]) == before
    assert len(before[0]) == 16


# --- books ------------------------------------------------------------------------------------


def books(**changes: Any) -> Books:
    right: dict[str, Any] = {
        "total": 8,
        "free": {0, 1, 2},
        "tree": {3, 4, 5, 6},
        "owned": set(),
        "leaving": set(),
        "quarantined": {7},
        "pinned": 0,
    }
    return Books(**right | changes)


def test_right_books_have_no_differences() -> None:
    assert differences(books()) == []
    assert differences(books(tree=None)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tree": {3, 4, 5}}, "lost pages"),
        ({"tree": {2, 3, 4, 5, 6}}, "both free and held by the tree"),
        ({"quarantined": {6, 7}}, "both quarantined and held by the tree"),
        ({"owned": {6}, "tree": {3, 4, 5}}, "idle, yet owned"),
        ({"pinned": 3}, "3 pages are pinned"),
        ({"free": {0, 1, 2, 9}}, "outside the pool"),
    ],
)
def test_each_kind_of_wrong_books_is_named(changes: dict[str, Any], said: str) -> None:
    assert any(said in text for text in differences(books(**changes)))


# --- messages ---------------------------------------------------------------------------------

MESSAGES: list[Message] = [
    Hello("print", "nonce", "host:1", 2**40, 4096, 2**30, 77),
    Want(2**62, "p", 0, 9),
    Ready(3, "p", 4, (7, 8), ("a", "b"), ("c", "d"), 30.0),
    Ready(3, "p", 4, (7,), ("a",), (), 30.0),
    Alive(3, "p"),
    End(3, "p", "short"),
    Done(3, "p"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_the_wire(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"kind":"want"}',
        b'{"kind":"fly"}',
        b'{"kind":"done","room":"1","plan_id":"p"}',
        b'{"kind":"done","room":true,"plan_id":"p"}',
        b'{"kind":"done","room":1,"plan_id":"p","more":1}',
        b'{"kind":"ready","room":1,"plan_id":"p","lo":0,"slots":[1],"hashes":[],"sums":[],"lease_s":1}',
        b'{"kind":"ready","room":1,"plan_id":"p","lo":0,"slots":["1"],"hashes":["a"],"sums":[],"lease_s":1}',
    ],
)
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["kind", "room", "plan_id", "lo", "hi"]), json_values))
def test_no_json_breaks_the_codec(tree: dict[str, Any]) -> None:
    tree.setdefault("kind", "want")
    with contextlib.suppress(ProtocolError):
        decode(json.dumps(tree).encode())


# --- settings ---------------------------------------------------------------------------------


def test_settings_come_from_the_environment_and_nothing_else() -> None:
    env = {
        "DUALPATH_ENGINE_HOOKS": "all",
        "DUALPATH_ENGINE_PIN_FRACTION": "0.5",
        "DUALPATH_ENGINE_VERIFY_PAGES": "1",
        "DUALPATH_ENGINE_EXPORT_PORT": "7001",
        "PATH": "/bin",
    }
    config = EngineConfig.from_env(env)
    assert config.second_path
    assert config.pin_fraction == 0.5
    assert config.verify_pages is True
    assert config.export_port == 7001
    assert EngineConfig.from_env({}) == EngineConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DUALPATH_ENGINE_HOOK", "all"),
        ("DUALPATH_ENGINE_HOOKS", "some"),
        ("DUALPATH_ENGINE_LEASE_S", "soon"),
        ("DUALPATH_ENGINE_LEASE_S", "0"),
        ("DUALPATH_ENGINE_LEASE_S", "nan"),
        ("DUALPATH_ENGINE_PIN_FRACTION", "1.5"),
        ("DUALPATH_ENGINE_EXPORT_PORT", "70000"),
        ("DUALPATH_ENGINE_VERIFY_PAGES", "perhaps"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineConfig.from_env({name: value})


def test_faults_fire_as_often_as_named() -> None:
    faults = Faults("store_missing:2, peer_timeout")
    assert [faults.fires("store_missing") for _ in range(3)] == [True, True, False]
    assert all(faults.fires("peer_timeout") for _ in range(5))
    assert not faults.fires("store_error")
    with pytest.raises(ConfigError):
        Faults("typo")
