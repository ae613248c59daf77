"""Tiers add up to the prompt, on both sides, and bytes are counted as the store returned them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from dualpath_sglang import metrics, report
from dualpath_sglang.contract.report import META_KEY, TurnReport, from_meta
from dualpath_sglang.secondpath.meter import Meter


def request(prompt: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(origin_input_ids=list(range(prompt)), customized_info=None, **more)


def read(req: Any) -> TurnReport:
    found = from_meta({META_KEY: req.customized_info[META_KEY]})
    assert found is not None
    return found


def total(r: TurnReport) -> int:
    return r.device + r.host + r.storage + r.peer + r.received + r.computed


def test_decode_counts_its_own_match_and_what_prefill_sent() -> None:
    match = SimpleNamespace(l1_prefix_len=32, l2_host_hit_length=16, l3_storage_hit_length=48)
    req = request(100)
    queue_result = report.after_decode_commit(
        None, None, SimpleNamespace(req=req, prefix_match=match)
    )
    assert queue_result is None
    assert (read(req).device, read(req).host, read(req).storage, read(req).received) == (
        32,
        16,
        48,
        4,
    )
    assert total(read(req)) == 100


def test_decode_without_a_match_received_everything() -> None:
    req = request(10)
    report.after_decode_commit(None, None, SimpleNamespace(req=req, prefix_match=None))
    assert read(req).received == 10


@pytest.mark.parametrize("mode", ["prefill", "decode", "null"])
def test_only_a_prefill_engine_adds_its_report_when_it_answers(mode: str) -> None:
    req = request(50, cached_tokens_device=16, cached_tokens_host=0, cached_tokens_storage=32)
    streamer = SimpleNamespace(disaggregation_mode=SimpleNamespace(value=mode))
    calls = []
    report.around_stream_output(lambda *a: calls.append(a), streamer, [req], False)
    assert calls == [(streamer, [req], False)]
    if mode == "prefill":
        assert (read(req).computed, total(read(req))) == (2, 50)
    else:
        assert req.customized_info is None


def test_a_report_that_cannot_be_made_does_not_stop_the_answer() -> None:
    streamer = SimpleNamespace(disaggregation_mode=SimpleNamespace(value="prefill"))
    out = report.around_stream_output(lambda *a: "sent", streamer, [SimpleNamespace()], False)
    assert out == "sent"


def test_reports_of_other_versions_and_none_are_none() -> None:
    assert from_meta({}) is None
    assert from_meta({META_KEY: []}) is None
    assert from_meta({META_KEY: [{"v": 99}]}) is None
    tree = TurnReport("decode", device=1).to_tree() | {"added_later": 1}
    assert from_meta({META_KEY: [None, tree]}) == TurnReport("decode", device=1)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_store_bytes_are_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_role", "decode")
    before = sample("dualpath_kv_bytes_total", path="store_to_decode")
    results = metrics.around_store_get(lambda store, keys: [4096, -1, 4096], None, ["a", "b", "c"])
    assert results == [4096, -1, 4096]
    assert sample("dualpath_kv_bytes_total", path="store_to_decode") - before == 8192


def test_what_the_second_path_publishes() -> None:
    published: list[tuple[str, dict[str, str], float]] = [
        ("dualpath_kv_bytes_total", {"path": "decode_to_prefill"}, 4096),
        # The hook around the store counts these.
        ("dualpath_kv_bytes_total", {"path": "store_to_prefill"}, 0),
        ("dualpath_kv_tokens_total", {"path": "decode_to_prefill"}, 16),
        ("dualpath_kv_tokens_total", {"path": "store_to_prefill"}, 32),
        ("dualpath_fallback_pages_total", {"reason": "late"}, 3),
        ("dualpath_fallback_pages_total", {"reason": "none"}, 0),
        ("dualpath_plans_total", {"outcome": "taken"}, 1),
        ("dualpath_pull_seconds_bucket", {"le": "0.025"}, 1),
    ]
    before = [sample(name, **labels) for name, labels, _ in published]
    meter: Meter = metrics.PrometheusMeter()
    meter.moved("decode_to_prefill", 16, 4096)
    meter.moved("store_to_prefill", 32, 8192)
    meter.fallback("late", 3)
    meter.fallback("none", 0)
    meter.plan("taken")
    meter.took("pull", 0.02)
    for (name, labels, grown), start in zip(published, before, strict=True):
        assert sample(name, **labels) - start == grown, (name, labels)
    for value in (3, 3, 2):
        meter.gauge("pinned", value)
    assert sample("dualpath_pinned") == 2
