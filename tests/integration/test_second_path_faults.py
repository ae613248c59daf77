"""One fault at a time, on real engines: right tokens or a clear error, no lost page, no hang.

Named faults are injected by the engine itself (`DUALPATH_ENGINE_FAULT`), dead processes are real.
Every idle round compares the books of the host pools (`second_path_rig.BOOKS`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from second_path_rig import (
    BOOKS,
    PULLING,
    STAGED,
    STAGING,
    Answer,
    Duo,
    Stage,
    duo,
    prompt,
)
from session_api import Session, served_exactly
from stacks import pair_config
from test_planned_turns import wait_until_stored

from agent_runtime.config import EngineGroup, RouterConfig
from agent_runtime.stack.stack import Stack

PAGES = 32
TURN_S = 60.0
"""A turn ends by then after any single fault."""

Start = Callable[..., Duo]


@pytest.fixture
def start(model_dir: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a pair with the given faults; stopped at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **kwargs: stack.enter_context(duo(model_dir, tmp_path, **kwargs))


def stored(made: Duo, seed: int = 1) -> tuple[list[int], list[int]]:
    """A prompt whose pages are in the store and nowhere else, and its right continuation."""
    tokens = prompt(random.Random(seed), PAGES)
    answer = made.without_plan(tokens)
    assert answer.errors == []
    made.settle()
    made.flush()
    return tokens, answer.tokens


def fault(text: str) -> dict[str, str]:
    return {"DUALPATH_ENGINE_FAULT": text}


# --- contents ---------------------------------------------------------------------------------


def pull_of_spoiled_pages(made: Duo) -> tuple[Answer, list[int]]:
    """D has the prompt on its device and in its host pool, P is cold; the host copies are spoiled
    when P asks for them. D itself decodes from its device, so only P can go wrong."""
    tokens = prompt(random.Random(1), PAGES)
    right = made.without_plan(tokens, output=16).tokens
    made.settle()
    made.wait_idle("prefill", TURN_S)
    return made.ask(tokens, made.plan(PAGES, PAGES // 2), output=16), right


def test_a_spoiled_page_is_seen_in_the_tokens_without_checksums(start: Start) -> None:
    """The mutation: these tests can see a wrong page."""
    made = start(decode=fault("peer_corrupt"), env={"DUALPATH_ENGINE_VERIFY_PAGES": "0"})
    answer, right = pull_of_spoiled_pages(made)
    assert answer.errors == []
    assert answer.prefill["peer"] == PAGES // 2 * 16
    assert answer.tokens != right


def test_a_spoiled_page_is_refused_with_checksums(start: Start) -> None:
    made = start(decode=fault("peer_corrupt"), env={"DUALPATH_ENGINE_VERIFY_PAGES": "1"})
    answer, right = pull_of_spoiled_pages(made)
    assert made.fallbacks("prefill")["peer_checksum"] == PAGES // 2
    assert answer.prefill["peer"] == 0
    assert answer.prefill["storage"] == PAGES * 16
    assert answer.tokens == right


# --- the store and the transfer engine ----------------------------------------------------------


@pytest.mark.parametrize("name", ["store_missing", "store_short", "store_error"])
def test_the_store_fails_one_read(start: Start, name: str) -> None:
    made = start(env=fault(f"{name}:1"))
    tokens, right = stored(made)
    first = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert first.errors == []
    assert first.tokens == right
    assert made.fallbacks("prefill") or made.fallbacks("decode")
    made.flush(timeout_s=90)
    second = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert second.tokens == right
    assert second.prefill["peer"] == PAGES // 2 * 16


@pytest.mark.full
@pytest.mark.parametrize("name", ["store_query_error", "store_write_error", "store_get_error"])
def test_the_store_raises_in_a_thread_of_sglang(start: Start, name: str) -> None:
    """The request computes what it does not get, and the thread serves the next one. (A thread that
    ended would end the engine: the books are compared.)"""
    own_reads = ",divert_error" if name == "store_get_error" else ""
    made = start(env=fault(f"{name}:2{own_reads}"))
    for seed in range(4):
        tokens, right = stored(made, seed)
        answer = made.without_plan(tokens)
        assert answer.errors == []
        assert answer.tokens == right
        made.flush()
    assert answer.prefill["storage"] == PAGES * 16
    made.let_go()


@pytest.mark.full
def test_a_pull_fails_and_its_slots_are_not_used_again(start: Start) -> None:
    made = start(prefill=fault("peer_timeout:1"))
    tokens, right = stored(made)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert made.fallbacks("prefill")["peer_read"] > 0
    assert 0 < made.counts("prefill")["quarantined"] <= PAGES // 2
    again = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert again.tokens == right


@pytest.mark.full
def test_a_store_that_hangs_costs_the_deadline(start: Start) -> None:
    made = start(prefill=fault("store_stall:1"), env={"DUALPATH_ENGINE_PULL_DEADLINE_S": "4"})
    tokens, right = stored(made)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.errors == []
    assert answer.tokens == right
    assert 3 < answer.seconds < 20
    assert made.fallbacks("prefill")["store_deadline"] > 0


@pytest.mark.full
def test_a_hook_that_fails_leaves_the_engine_as_upstream_made_it(start: Start) -> None:
    made = start(env=fault("divert_error"))
    tokens, right = stored(made)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == 0
    made.flush()


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_plan_larger_than_the_pin_cap_is_followed_in_part(start: Start) -> None:
    made = start(env={"DUALPATH_ENGINE_PIN_FRACTION": "0.01"}, max_total_tokens=4096)
    tokens, right = stored(made)
    answer = made.ask(tokens, made.plan(PAGES, PAGES))
    assert answer.tokens == right
    cap = 5 * 16
    assert answer.prefill["peer"] == cap
    assert answer.prefill["storage"] == PAGES * 16 - cap
    assert answer.decode["fallback"] == "pin_cap"


@pytest.mark.full
def test_many_at_once_wait_for_a_small_host_pool(start: Start) -> None:
    made = start(max_total_tokens=2048, hicache_ratio=1.2)
    rng = random.Random(2)
    prompts = [prompt(rng, PAGES) for _ in range(12)]
    right = [made.without_plan(tokens).tokens for tokens in prompts]
    made.settle()
    made.flush()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda t: made.ask(t, made.plan(PAGES, PAGES // 2)), prompts))
    assert [answer.tokens for answer in found] == right
    computed = [answer.prefill["computed"] for answer in found]
    reasons = [answer.prefill["fallback"] for answer in found]
    assert sum(computed) <= 12 * 5 + 2 * PAGES * 16, (computed, reasons)
    made.flush()


# --- dead processes -----------------------------------------------------------------------------


SLOW_PULL = {"DUALPATH_ENGINE_PEER_BYTES_PER_S": "200000"}
SLOW = {"DUALPATH_ENGINE_STORE_BYTES_PER_S": "400000"}
"""2 MiB of this prompt's KV then take 5 s."""


def test_decode_dies_while_staging(start: Start) -> None:
    # Whoever asked both engines sees D's connection break; P by itself waits for D that long.
    made = start(decode=SLOW, prefill={"SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "20"})
    tokens, _ = stored(made)
    name = next(e.name for e in made.stack.engines if e.role == "decode")
    threading.Timer(1.5, made.stack.kill, (name,)).start()
    answer = made.ask(tokens, made.plan(PAGES, PAGES), timeout_s=TURN_S)
    assert len(answer.errors) == 2
    assert answer.seconds < TURN_S
    made.wait_idle("prefill", TURN_S)


@pytest.mark.full
def test_prefill_dies_while_pulling(start: Start) -> None:
    made = start(
        env=SLOW | {"DUALPATH_ENGINE_LEASE_S": "3", "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "30"}
    )
    tokens, _ = stored(made)
    name = next(e.name for e in made.stack.engines if e.role == "prefill")
    threading.Timer(1.5, made.stack.kill, (name,)).start()
    answer = made.ask(tokens, made.plan(PAGES, PAGES), timeout_s=TURN_S)
    assert answer.errors
    made.wait_idle("decode", TURN_S)
    assert made.fallbacks("decode").get("lease_over", 0) <= 1


@pytest.mark.full
def test_decode_comes_back_on_its_port(start: Start) -> None:
    port = str(random.Random().randrange(20000, 30000))
    made = start(decode={"DUALPATH_ENGINE_EXPORT_PORT": port}, engines="restart")
    tokens, right = stored(made)
    assert made.ask(tokens, made.plan(PAGES, PAGES // 2)).tokens == right
    name = next(e.name for e in made.stack.engines if e.role == "decode")
    made.stack.kill(name)
    made.stack.wait_for(name, "ready", 120.0, restarts=1)
    made.wait_idle("prefill", TURN_S)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == PAGES // 2 * 16


@pytest.mark.full
@pytest.mark.parametrize("part", ["store", "master"])
def test_the_store_dies(start: Start, part: str) -> None:
    made = start()
    tokens, right = stored(made)
    made.stack.kill(part)
    time.sleep(1.0)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2), timeout_s=TURN_S)
    assert answer.errors == []
    assert answer.tokens == right
    assert answer.seconds < TURN_S
    made.let_go(timeout_s=120)


@pytest.mark.full
@pytest.mark.parametrize("slow", ["STORE", "PEER"])
def test_the_client_goes_at_every_stage(start: Start, slow: str) -> None:
    """While D stages or P pulls, for about 5 s, at the end of it, and while tokens are made."""
    made = start(env={f"DUALPATH_ENGINE_{slow}_BYTES_PER_S": "400000"})
    tokens, right = stored(made)
    for after in (0.05, 0.5, 1.5, 3.0, 5.2, 7.0):
        made.ask(tokens, made.plan(PAGES, PAGES), output=1000, abort_after_s=after)
        made.flush()
        counts = made.counts("decode")
        assert counts.get("pinned", 0) == counts.get("exchanges", 0) == 0, after
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == PAGES // 2 * 16


@pytest.mark.full
def test_the_client_hangs_up(start: Start) -> None:
    """Nobody tells the engines: they find the connection closed."""
    made = start(decode=SLOW, prefill=SLOW_PULL)
    tokens, right = stored(made)
    for stage in (STAGING, PULLING, STAGED):
        made.hang_up(tokens, made.plan(PAGES, PAGES), stage)
        made.let_go()
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == PAGES // 2 * 16
    made.let_go()


# --- a decode engine that hangs -----------------------------------------------------------------


@pytest.mark.full
def test_decode_stands_still_while_it_is_pulled_from(start: Start) -> None:
    """P reads from the store what it does not get, and uses no page that may still be written."""
    made = start(prefill=SLOW_PULL | {"DUALPATH_ENGINE_PULL_DEADLINE_S": "3"})
    tokens, right = stored(made)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(made.ask, tokens, made.plan(PAGES, PAGES))
        made.wait_for(PULLING)
        with standing_still(made, "decode"):
            # Not as long as Mooncake itself would wait, 30 s.
            made.wait_for(("prefill", "quarantined"), timeout_s=20)
            made.wait_for(("prefill", "kv_bytes_total.store_to_prefill"), timeout_s=20)
        answer = asked.result(TURN_S)
    assert answer.errors == []
    assert answer.tokens == right
    assert 0 < answer.prefill["peer"] < PAGES * 16
    assert answer.prefill["peer"] + answer.prefill["storage"] == PAGES * 16
    made.let_go(timeout_s=120)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == PAGES // 2 * 16


@contextlib.contextmanager
def standing_still(made: Duo, role: str) -> Iterator[None]:
    """All processes of an engine are stopped, and go on afterwards."""
    pid = made.component(role).pid
    assert pid is not None
    engine = psutil.Process(pid)
    processes = [engine, *engine.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.mark.full
def test_a_store_that_hangs_on_decode_costs_its_deadline(start: Start) -> None:
    deadline = {"DUALPATH_ENGINE_STAGING_DEADLINE_S": "3"}
    made = start(decode=fault("store_stall:1") | deadline)
    tokens, right = stored(made)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.errors == []
    assert answer.tokens == right
    assert answer.seconds < 30, "half as long as the store hangs"
    assert answer.prefill["peer"] < PAGES // 2 * 16
    assert answer.prefill["peer"] + answer.prefill["storage"] == PAGES * 16
    assert made.fallbacks("decode")["store_deadline"] == 1
    assert answer.decode["fallback"] == "store_deadline"
    made.let_go(timeout_s=120)
    answer = made.ask(tokens, made.plan(PAGES, PAGES // 2))
    assert answer.tokens == right
    assert answer.prefill["peer"] == PAGES // 2 * 16


# --- through the router -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Duo]:
    """With the router's and SGLang's own time limits, as `dualpath up` has them."""
    config = pair_config(
        model_dir,
        tmp_path_factory.mktemp("routed"),
        router=RouterConfig(port=0, split_policy="decode_path"),
        engines=(
            EngineGroup(role="prefill", env=BOOKS | SLOW_PULL),
            EngineGroup(role="decode", env=BOOKS | SLOW),
        ),
    )
    with Stack(config).start() as stack:
        yield Duo(stack, 16)


def session_in_store(made: Duo, seed: int) -> Session:
    """A session of one turn, whose next turn reads its prefix from the store."""
    session = Session(made.stack.router_url)
    tokens = prompt(random.Random(seed), PAGES)
    session.turn(token_ids=tokens).raise_for_status()
    with httpx.Client(base_url=made.stack.router_url) as client:
        wait_until_stored(made.stack, client, session.id)
    made.flush()
    return session


@pytest.mark.full
@pytest.mark.parametrize("stage", [STAGING, STAGED], ids=["staging", "pulling"])
def test_a_client_of_the_router_hangs_up(routed: Duo, reference: str, stage: Stage) -> None:
    session = session_in_store(routed, seed=21)
    before = routed.count(*stage)
    events = session.events(token_ids=[7] * 20)
    assert next(events)[0] == "turn.started"
    routed.wait_for(stage, before)
    events.close()
    routed.let_go()
    served_exactly(session, reference, [7] * 20)
    routed.let_go()


@pytest.mark.full
@pytest.mark.parametrize(
    ("role", "stage"), [("decode", STAGING), ("prefill", STAGED)], ids=["staging", "pulling"]
)
def test_an_engine_of_the_router_dies(routed: Duo, reference: str, role: str, stage: Stage) -> None:
    session = session_in_store(routed, seed=22)
    engine, before = routed.component(role), routed.count(*stage)
    name = engine.component.name
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.turn, token_ids=[8] * 20)
        routed.wait_for(stage, before)
        routed.stack.kill(name)
        reply = asked.result(TURN_S)
    assert reply.status_code == 502, reply.text
    error = reply.json()["error"]
    assert error["type"] == "engine_failure"
    assert name in error["message"]
    routed.stack.wait_for(name, "ready", 120.0, restarts=engine.restarts + 1)
    served_exactly(session, reference, [8] * 20)
    routed.let_go()


@pytest.mark.full
def test_a_turn_does_not_outlive_an_engine_that_stands_still(routed: Duo, reference: str) -> None:
    """Its connections stay open; SGLang's own limit is 300 s, that of the turn too."""
    session = session_in_store(routed, seed=23)
    before = routed.count(*STAGING)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.turn, token_ids=[9] * 20)
        routed.wait_for(STAGING, before)
        with standing_still(routed, "decode"):
            reply = asked.result(TURN_S)
    assert reply.status_code == 502, reply.text
    assert routed.component("decode").component.name in reply.json()["error"]["message"]
    served_exactly(session, reference, [9] * 20)
    routed.let_go()
