"""Turns through the router on real engines: the plan it makes is what both engines do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from agent_runtime.stack.stack import RunningStack
from dualpath_sglang.contract.engine_info import from_tree
from dualpath_sglang.contract.pages import page_hashes

PAGE = 16
TURNS = ([500, 120, 90], [900, 40, 200])
"""Appended tokens of each turn, for two sessions."""


@pytest.fixture
def router(pair: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pair.router_url, timeout=60.0) as client:
        ends = time.monotonic() + 30.0
        while client.get("/ready").status_code != 200 and time.monotonic() < ends:
            time.sleep(0.1)
        yield client


def tokens(n: int, seed: int) -> list[int]:
    return [10 + (seed * 7919 + i * i * 31 + i) % 190 for i in range(n)]


def take(router: httpx.Client, session: str, appended: list[int]) -> dict[str, Any]:
    body = {"token_ids": appended, "max_new_tokens": 12, "sampling": {"ignore_eos": True}}
    reply = router.post(f"/v1/sessions/{session}/turns", json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_the_router_knows_what_both_engines_publish(router: httpx.Client) -> None:
    engines = router.get("/admin/engines").json()["engines"]
    infos = [from_tree(engine["info"]) for engine in engines]
    assert [info.role for info in infos] == ["prefill", "decode"]
    assert infos[0].fingerprint == infos[1].fingerprint
    assert infos[0].key_layout == infos[1].key_layout
    assert infos[0].boot_nonce != infos[1].boot_nonce
    assert len(infos[1].exports) == 1
    assert all(info.page_size == PAGE and info.hooks for info in infos)


@pytest.mark.parametrize("appended", TURNS, ids=["short", "long"])
def test_after_a_flush_the_prefix_is_read_once_as_planned(
    pair: RunningStack, router: httpx.Client, appended: list[int]
) -> None:
    session = router.post("/v1/sessions", json={}).json()["session_id"]
    take(router, session, tokens(appended[0], appended[0]))
    for turn, n in enumerate(appended[1:], 1):
        stored = wait_until_stored(pair, router, session)
        assert router.post("/admin/flush_cache").status_code == 200
        answer = take(router, session, tokens(n, turn))
        placement, usage = answer["placement"], answer["usage"]
        pages, split = placement["pages"], placement["split"]
        assert pages == stored
        assert split == pages // 2, "1P1D: half of it, a half page to P"
        assert "split over 1P1D" in placement["reason"]
        assert usage["prefill"]["peer"] == split * PAGE
        assert usage["prefill"]["storage"] == (pages - split) * PAGE
        assert usage["decode"]["storage"] == split * PAGE
        per_page = usage["load"]["decode"]["store_bytes"] // split
        assert usage["load"]["prefill"]["store_bytes"] == (pages - split) * per_page
        assert usage["load"]["prefill"]["peer_bytes"] == split * per_page
        assert [load["fallback"] for load in usage["load"].values()] == ["", ""]
    router.delete(f"/v1/sessions/{session}")


def wait_until_stored(pair: RunningStack, router: httpx.Client, session: str) -> int:
    """The history's pages are written back after its turn. Without the last token: its KV has
    never been computed."""
    tree = router.get(f"/v1/sessions/{session}", params={"include": "token_ids"}).json()
    hashes = page_hashes(tree["token_ids"][:-1], PAGE)
    engine = router.get("/admin/engines").json()["engines"][0]
    layout = from_tree(engine["info"]).key_layout
    assert layout is not None
    keys = [key for page in hashes for key in layout.object_keys(page)]
    master = next(part for part in pair.layout.components if part.kind == "master")
    url = f"http://127.0.0.1:{master.ports['metrics']}/batch_query_keys"
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        data = httpx.get(url, params={"keys": ",".join(keys)}).json()["data"]
        if all(data[key]["ok"] for key in keys):
            return len(hashes)
        time.sleep(0.05)
    raise AssertionError("pages of the history never came to the store")
