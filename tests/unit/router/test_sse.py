"""One reader and one writer of server-sent events for all of the project."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.http.sse import event
from agent_runtime.sse import SseParser

STREAM = (
    'event: a\ndata: {"x": "\u00e9\u2028"}\n\ndata: 1\ndata: 2\r\n\r\n: comment\n\n\n\n'
    "event: b\ndata:3\n\n\nid: 7\n\ndata\n\ndata: 4\r\rdata: unfinished"
)
EVENTS = [
    ("a", '{"x": "\u00e9\u2028"}'.encode()),
    ("message", b"1\n2"),
    ("b", b"3"),
    ("message", b""),
    ("message", b"4"),
]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
def test_events_do_not_depend_on_how_bytes_arrive(cuts: list[int]) -> None:
    data = STREAM.encode()
    parser = SseParser()
    places = pairwise([0, *sorted(cuts), len(data)])
    assert [found for start, end in places for found in parser.feed(data[start:end])] == EVENTS


def test_single_bytes() -> None:
    parser = SseParser()
    assert [e for byte in STREAM.encode() for e in parser.feed(bytes([byte]))] == EVENTS


@given(st.lists(st.text(), max_size=4), st.integers(1, 9))
def test_any_text_survives_and_no_event_has_a_line_too_many(texts: list[str], size: int) -> None:
    raw = b"".join(event("tokens", {"text": text}) for text in texts)
    assert len(raw.decode().splitlines()) == 3 * len(texts)
    parser = SseParser()
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]
    events = [found for part in parts for found in parser.feed(part)]
    assert [(name, json.loads(data)["text"]) for name, data in events] == [
        ("tokens", text) for text in texts
    ]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_long_event_costs_what_its_bytes_cost(size: int) -> None:
    """Its parts are joined once: no test of time, but of how often."""
    raw = event("turn.done", {"token_ids": list(range(2000))})
    parser = SseParser()
    for start in range(0, len(raw) - size, size):
        assert parser.feed(raw[start : start + size]) == []
    last = raw[(len(raw) - size - 1) // size * size + size :]
    events = parser.feed(last)
    assert len(events) == 1
    assert json.loads(events[0][1])["token_ids"][-1] == 1999
