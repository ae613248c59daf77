"""GET /metrics, read by the official parser."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families
from router_world import World, eventually, world

PREFIX = "dualpath_router_"


async def scraped(w: World) -> dict[str, float]:
    """`name{label values}` -> value."""
    reply = await w.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [s for f in text_string_to_metric_families(reply.text) for s in f.samples]
    return {
        " ".join([s.name.removeprefix(PREFIX), *sorted(s.labels.values())]): s.value
        for s in samples
    }


async def test_turns_are_counted_by_how_they_ended() -> None:
    async with world() as w:
        sid = await w.session()
        await w.turn(sid, key="k", token_ids=[1] * 9, max_new_tokens=4)
        await w.turn(sid, key="k", token_ids=[1] * 9, max_new_tokens=4)
        await w.turn(sid, token_ids=[2], keep=999)
        w.decode.fault = "event"
        await w.turn(sid, token_ids=[3])
        w.decode.fault = "hang"
        hanging = asyncio.create_task(w.turn(sid, token_ids=[4]))
        await eventually(lambda: w.decode.running)
        during = await scraped(w)
        hanging.cancel()
        await w.idle()
        after = await scraped(w)
    assert during["turns_inflight"] == during["engine_inflight d0 decode"] == 1
    outcomes = {k.split()[1]: v for k, v in after.items() if k.startswith("turns_total")}
    assert outcomes == {
        "done": 1,
        "replayed": 1,
        "bad_request": 1,
        "engine_failure": 1,
        "cancelled": 1,
    }
    assert (after["tokens_total prompt"], after["tokens_total output"]) == (9, 4)
    assert after["cached_tokens_total peer prefill"] == 2
    assert after["cached_tokens_total decode storage"] == 4
    assert after["turns_inflight"] == after["engine_inflight d0 decode"] == 0
    assert after["engine_healthy p0 prefill"] == after["sessions"] == 1
