"""Orders to an engine and its results survive the way there and back; nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.probe import (
    PROBES_KEY,
    SETTING,
    ProbeOrder,
    order_from,
    result_from,
)

orders = st.builds(
    ProbeOrder,
    st.text(max_size=9),
    st.text(max_size=9),
    st.sampled_from(["describe", "store", "seed", "peer", "release"]),
    st.text(max_size=9),
    st.text(max_size=9),
    st.integers(0, 2**31),
)


@given(orders)
def test_orders_arrive_as_they_were_sent(order: ProbeOrder) -> None:
    (setting,) = order.to_settings()
    assert order_from(setting) == order


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "{}",
        '{"id":"a"}',
        '{"id":"a","run":"b","source":"x","name":"","peer":"","slot":0}',
        '{"id":"a","run":"b","source":"seed","name":1,"peer":"","slot":0}',
        '{"id":"a","run":"b","source":"seed","name":"","peer":"","slot":true}',
    ],
)
def test_what_is_no_order(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- json's and ours
        order_from(SETTING + text)


def test_results_that_make_no_sense() -> None:
    assert result_from({}, "a") is None
    assert result_from({"internal_states": [None, {PROBES_KEY: []}]}, "a") is None
    for tree in ({"sums": []}, {"sums": [], "id": "a", "state": "done", "more": 1}, {"id": "a"}):
        with pytest.raises(EngineFailure):
            result_from({"internal_states": [{PROBES_KEY: {"a": tree}}]}, "a")
