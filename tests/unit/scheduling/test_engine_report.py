"""Reports, orders and answers: what comes off the wire is what went in, or a named error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_sglang.contract.engine_report import (
    VERSION,
    Answer,
    EngineReport,
    Memory,
    Order,
    Priority,
    Progress,
    Rate,
    Stage,
    Unfinished,
    Unpin,
    decode_answer,
    decode_order,
    decode_report,
    encode,
)
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.ids import RequestId

count = st.integers(0, 2**40)
amount = st.floats(0, 1e12)
rates = st.builds(Rate, amount, amount, count)
ids = st.text(max_size=8).map(RequestId)
reports = st.builds(
    EngineReport,
    v=st.just(VERSION),
    boot_nonce=st.text(max_size=4),
    number=count,
    age_s=amount,
    role=st.sampled_from(["prefill", "decode"]),
    seq=count,
    tok=count,
    store_queue=count,
    peer_queue=count,
    store=rates,
    peer=rates,
    compute=rates,
    memory=st.builds(Memory, *[count] * 8),
    progress=st.builds(Progress, *[st.one_of(st.none(), amount)] * 3),
    requests=st.lists(st.builds(Unfinished, ids, *[count] * 4), max_size=4).map(tuple),
    finished=st.lists(ids, max_size=4).map(tuple),
)
GOOD = EngineReport(
    boot_nonce="b",
    number=1,
    age_s=0.0,
    role="prefill",
    seq=0,
    tok=0,
    store_queue=0,
    memory=Memory(*[1] * 6),
)


@given(reports)
def test_reports_survive_the_wire(report: EngineReport) -> None:
    assert decode_report(encode(report)) == report


def changed(**values: Any) -> bytes:
    tree: dict[str, Any] = msgspec.to_builtins(GOOD)
    return msgspec.msgpack.encode({**tree, **values})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"tok": -1}, "tok"),
        ({"seq": "1"}, "seq"),
        ({"role": "plain"}, "role"),
        ({"memory": {"device_free": 1}}, "device_pool"),
        ({"memory": {**msgspec.to_builtins(GOOD.memory), "loadable": -5}}, "loadable"),
        ({"store": [1.0, -1.0, 2]}, "store"),
        ({"requests": [["a"]]}, "requests"),
        ({"v": VERSION + 1}, "version"),
    ],
)
def test_what_is_wrong_with_a_report_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineFailure, match=named):
        decode_report(changed(**values))


def test_a_newer_engine_may_say_more() -> None:
    assert decode_report(changed(temperature=70)) == GOOD


@given(st.binary(max_size=30))
def test_nonsense_is_a_failure_of_the_engine(data: bytes) -> None:
    for decode in (decode_report, decode_answer):
        with pytest.raises(EngineFailure):
            decode(data)
    with pytest.raises(ValueError, match="order"):
        decode_order(data)


@pytest.mark.parametrize(
    "order",
    [
        Stage(id="1", session="s", token_ids=(1, 2), first=0, last=3, deadline_s=1.0, hold_s=9.0),
        Priority(id="2", session="s", token_ids=(1,), value=-3),
        Unpin(id="3", session="s"),
    ],
)
def test_orders_survive_the_wire(order: Order) -> None:
    assert decode_order(encode(order)) == order
    for outcome in ("done", "part", "refused"):
        answer = Answer(id=order.id, outcome=outcome, tokens=4, reason="r")  # type: ignore[arg-type]
        assert decode_answer(encode(answer)) == answer


def test_an_order_for_no_range_of_pages_is_refused() -> None:
    order = Stage(id="1", session="s", token_ids=(), first=3, last=2, deadline_s=1.0, hold_s=1.0)
    with pytest.raises(ValueError, match="range of pages"):
        decode_order(encode(order))
