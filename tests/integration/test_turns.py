"""Turns of a session on real engines: text, messages, rewrites of the context, cancellation."""

from __future__ import annotations

import random
import time

import httpx
import pytest
from session_api import Session, plain

from agent_runtime.stack.stack import RunningStack


def ids(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 4000) for _ in range(count)]


def busy_on(pair: RunningStack) -> int:
    engines = httpx.get(f"{pair.router_url}/admin/engines").json()["engines"]
    return sum(engine["inflight"] for engine in engines)


def test_text_messages_and_tokens_make_one_exact_history(
    pair: RunningStack, reference: str
) -> None:
    session = Session(pair.router_url)
    told = session.turn(messages=[{"role": "user", "content": "count to three"}])
    assert told.status_code == 200, told.text
    asked = session.turn(messages=[{"role": "user", "content": "and back"}])
    assert asked.status_code == 200, asked.text
    more = session.turn(text=" more")
    assert more.status_code == 200, more.text
    last = session.turn(token_ids=ids(1, 40))
    history = session.history()
    assert last.json()["history_tokens"] == len(history)
    output = last.json()["token_ids"]
    assert history[-len(output) :] == output
    assert plain(reference, history[: -len(output)], len(output)) == output


def test_a_cut_context_goes_on_exactly(pair: RunningStack, reference: str) -> None:
    session = Session(pair.router_url)
    session.turn(token_ids=ids(2, 400)).raise_for_status()
    before = session.history()
    new = ids(3, 30)
    turn = session.turn(token_ids=new, keep=205).json()
    assert turn["prompt_tokens"] == 235
    assert turn["token_ids"] == plain(reference, before[:205] + new, 8)


def test_a_client_that_goes_away_frees_both_engines(pair: RunningStack) -> None:
    session = Session(pair.router_url)
    events = session.events(tokens=4000, token_ids=ids(4, 100))
    while next(events)[0] != "tokens":
        pass
    assert busy_on(pair) == 2
    events.close()
    end = time.monotonic() + 10
    while busy_on(pair) and time.monotonic() < end:
        time.sleep(0.1)
    assert busy_on(pair) == 0
    assert session.history() == []
    again = session.turn(token_ids=ids(4, 100))
    assert again.status_code == 200, again.text


def test_a_turn_ends_at_its_deadline(pair: RunningStack) -> None:
    session = Session(pair.router_url)
    began = time.monotonic()
    late = session.turn(tokens=8000, token_ids=ids(5, 50), deadline_s=1.5)
    assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert time.monotonic() - began < 10
    assert session.history() == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"token_ids": [1], "max_new_tokens": -1}, 400, "max_new_tokens"),
        ({"token_ids": [1], "keep": 10**6}, 400, "keep"),
        ({"token_ids": [1], "max_new_tokens": 10**6}, 400, "context"),
        ({"token_ids": [10**6]}, 400, "vocabulary"),
        ({"token_ids": [1], "tempreature": 1}, 400, "unknown field"),
        ({"token_ids": [1], "if_turn": 7}, 409, "if_turn"),
    ],
)
def test_bad_turns_are_refused_with_the_field_and_lose_nothing(
    pair: RunningStack, body: dict[str, object], status: int, words: str
) -> None:
    session = Session(pair.router_url)
    refused = httpx.post(f"{pair.router_url}/v1/sessions/{session.id}/turns", json=body)
    assert refused.status_code == status, refused.text
    assert words in refused.json()["error"]["message"]
    assert session.history() == []
