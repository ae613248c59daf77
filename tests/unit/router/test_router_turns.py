"""Turns that go well: exact history, the bodies that the engines see, what a client gets back."""

from __future__ import annotations

from router_world import world
from stub_engines import BOOTSTRAP_PORT, formula


async def test_a_turn_as_json() -> None:
    async with world() as w:
        sid = await w.session()
        done = await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=4)
        assert done["token_ids"] == formula([1, 2, 3], 4)
        assert await w.history(sid) == [1, 2, 3, *done["token_ids"]]
        p, d = w.prefill.body, w.decode.body
        assert p == d
        assert (p["bootstrap_host"], p["bootstrap_port"]) == ("127.0.0.1", BOOTSTRAP_PORT)
        assert 0 <= p["bootstrap_room"] < 2**63
        await w.idle()
        assert w.prefill.aborted == w.decode.aborted == []
