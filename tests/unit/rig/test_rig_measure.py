"""Windows, hits and bytes of runs made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.records import Failure, SessionRecord, TurnRecord
from benchmarks.rig import measure
from benchmarks.rig.counters import (
    EngineCounts,
    machine_busy_s,
    own_cpu_s,
    parse_counts,
    total,
)
from benchmarks.rig.measure import Counted, Pages
from benchmarks.rig.net import NodeBytes

PAGES = Pages(16, 100)


def turn(session: str, start: float, took: float, **more: Any) -> TurnRecord:
    return TurnRecord(
        session, 0, keep=0, append=1, out=1, started_s=start, gap_s=0, e2e_ms=took * 1e3, **more
    )


def session(name: str, end: float, error: Failure | None = None) -> SessionRecord:
    return SessionRecord(name, "rig", 1, 1, 0.0, end, end, error)


def tiers(device: int = 0, host: int = 0, storage: int = 0, peer: int = 0) -> dict[str, int]:
    return {"device": device, "host": host, "storage": storage, "peer": peer}


def test_only_turns_that_end_while_all_sessions_are_active_count() -> None:
    turns = [turn("a", 0.0, 2.0), turn("a", 2.0, 2.0), turn("b", 1.0, 4.0), turn("b", 5.0, 9.0)]
    got = measure.window(turns, [session("a", 4.0), session("b", 14.0)])
    assert (got.start_s, got.end_s, got.turns) == (1.0, 4.0, 2)
    assert got.turns_per_s == pytest.approx(2 / 3)


def test_a_failed_turn_is_no_throughput_and_its_session_ends_the_window() -> None:
    failed = turn("b", 0.0, 3.0, error=Failure("x", "y"))
    turns = [turn("a", 0.0, 2.0), failed, turn("a", 2.0, 2.0)]
    sessions = [session("a", 4.0), session("b", 3.0, Failure("x", "y"))]
    assert measure.window(turns, sessions).turns == 1
    assert measure.window(turns[:1], sessions).turns_per_s == 0.0


def test_plans_ask_for_what_no_engine_has() -> None:
    cold = turn("a", 0, 1, split=4, pages=10, prefill=tiers(storage=96, peer=64), decode=tiers())
    assert measure.planned_bytes([cold], PAGES) == {
        "store_to_decode": 64 * 100,
        "decode_to_prefill": 64 * 100,
        "store_to_prefill": 96 * 100,
    }
    assert measure.needed_bytes([cold], PAGES) == 160 * 100
    warm_p = turn("a", 0, 1, split=4, pages=10, prefill=tiers(device=80), decode=tiers())
    assert measure.planned_bytes([warm_p], PAGES) == {
        "store_to_decode": 64 * 100,
        "decode_to_prefill": 0,
        "store_to_prefill": 80 * 100,
    }
    assert measure.needed_bytes([warm_p], PAGES) == 80 * 100
    warm_d = turn("a", 0, 1, split=4, pages=10, prefill=tiers(), decode=tiers(host=160))
    assert measure.planned_bytes([warm_d], PAGES)["store_to_decode"] == 0
    assert measure.needed_bytes([warm_d], PAGES) == 96 * 100
    none = turn("a", 0, 1, prefill=tiers(storage=48))
    assert set(measure.planned_bytes([none], PAGES).values()) == {0}
    assert measure.needed_bytes([none], PAGES) == 48 * 100


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 900),
    st.integers(0, 900),
)
def test_no_plan_asks_for_less_than_is_needed(a: int, b: int, on_p: int, on_d: int) -> None:
    k, n = min(a, b), max(a, b)
    one = turn("a", 0, 1, split=k, pages=n, prefill=tiers(device=on_p), decode=tiers(host=on_d))
    asked = measure.planned_bytes([one], PAGES)
    store = asked["store_to_prefill"] + asked["store_to_decode"]
    assert store >= measure.needed_bytes([one], PAGES) >= 0


def test_share_of_hits_that_came_off_a_storage_nic() -> None:
    own = turn("a", 0, 1, prefill=tiers(device=10, storage=90))
    assert measure.from_storage([own]) == pytest.approx(0.9)
    pulled = turn("a", 0, 1, prefill=tiers(storage=50, peer=50), decode=tiers(host=20))
    assert measure.from_storage([pulled]) == pytest.approx(0.8)
    assert measure.from_storage([turn("a", 0, 1, prefill=tiers())]) is None


def test_bytes_come_from_the_kernel_and_payload_from_the_right_counter() -> None:
    kv = {"store_to_prefill": 50, "store_to_decode": 0, "decode_to_prefill": 30}
    counts = EngineCounts({**kv, "prefill_to_decode": 7}, prefetched_tokens=3)
    counted = Counted({"p1": NodeBytes(60, 5, 40, 1), "d1": NodeBytes(20)}, {"p1": counts}, {})
    block = measure.byte_block(counted, ["p1", "d1"], PAGES, ours=True)
    assert block["nic_read_bytes"] == {"p1": 60, "d1": 20}
    assert block["nic_max_over_avg"] == pytest.approx(1.5)
    assert (block["store_read_bytes"], block["peer_bytes"]) == (50, 30)
    assert block["path_bytes"]["prefill_to_decode"] == 7
    upstream = measure.byte_block(counted, ["p1", "d1"], PAGES, ours=False)
    assert upstream["store_read_bytes"] == 300
    assert upstream["path_bytes"] is None


def test_cpu_that_others_used() -> None:
    counted = Counted({}, {}, {"p1": 30.0, "d1": 10.0}, busy_s=60.0, capacity_s=200.0)
    assert counted.foreign_share == pytest.approx(0.1)
    assert counted.busy_share == pytest.approx(0.3)
    assert Counted({}, {}, {}).foreign_share is None
    before = machine_busy_s()
    assert own_cpu_s() > 0
    assert machine_busy_s() >= before > 0


def test_counters_of_an_engine() -> None:
    text = """\
# HELP dualpath_kv_bytes_total x
dualpath_kv_bytes_total{path="store_to_prefill"} 1.5e+03
dualpath_kv_bytes_total{path="decode_to_prefill",more="x"} 8.0
dualpath_kv_bytes_total{path="unknown"} 8.0
sglang:prefetched_tokens_total{model_name="m",tp_rank="0"} 64.0
sglang:prefetched_tokens_created{model_name="m"} 1.7e9
up 1
not a sample
"""
    counts = parse_counts(text)
    assert counts.kv_bytes["store_to_prefill"] == 1500
    assert counts.kv_bytes["decode_to_prefill"] == 8
    assert counts.kv_bytes["store_to_decode"] == 0
    assert counts.prefetched_tokens == 64
    assert parse_counts("") == EngineCounts()
    both = total([counts, counts])
    assert both.prefetched_tokens == 128
    assert both.since(counts) == counts
