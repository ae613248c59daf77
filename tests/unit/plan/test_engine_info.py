"""What an engine publishes is read strictly: a half-understood engine gets no plans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dualpath_sglang.contract.engine_info import (
    INFO_KEY,
    EngineInfo,
    from_server_info,
    from_tree,
)
from dualpath_sglang.contract.errors import EngineFailure
from dualpath_sglang.contract.pages import KeyLayout

INFO = EngineInfo(
    role="decode",
    sglang="0.5.23",
    page_size=64,
    kv_bytes_per_token=4096,
    fingerprint="f" * 16,
    boot_nonce="n" * 16,
    exports=("10.0.0.7:18011", "10.0.0.7:18012"),
    hooks=("sglang.srt.managers.scheduler.Scheduler.get_internal_state",),
    key_layout=KeyLayout("model_", ("_0_k", "_0_v"), 64, 1),
)


def test_round_trip_through_json() -> None:
    assert from_tree(json.loads(json.dumps(INFO.to_tree()))) == INFO


def test_found_in_server_info() -> None:
    states = [{"page_size": 64}, {INFO_KEY: INFO.to_tree()}]
    assert from_server_info({"version": "0.5.23", "internal_states": states}) == INFO


@pytest.mark.parametrize(
    "server_info",
    [{}, {"internal_states": []}, {"internal_states": None}, {"internal_states": [{}]}],
)
def test_without_the_plugin_there_is_none(server_info: dict[str, Any]) -> None:
    assert from_server_info(server_info) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "version 2"),
        ({"role": "null"}, "Expected `str` matching regex .* - at `\\$.role`"),
        ({"page_size": "64"}, "Expected `int`, got `str` - at `\\$.page_size`"),
        ({"page_size": True}, "got `bool` - at `\\$.page_size`"),
        ({"kv_bytes_per_token": -1}, "Expected `int` >= 0 - at `\\$.kv_bytes_per_token`"),
        ({"exports": "10.0.0.7:1"}, "Expected `array`, got `str` - at `\\$.exports`"),
        ({"hooks": [1]}, "at `\\$.hooks\\[0\\]`"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"key_layout": []}, "got `array` - at `\\$.key_layout`"),
        ({"key_layout": None}, "got `null` - at `\\$.key_layout`"),
        ({"key_layout": {"prefix": "m_"}}, "missing required field `suffixes`"),
    ],
)
def test_strict(change: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineFailure, match=says):
        from_tree(INFO.to_tree() | change)


def test_a_missing_field_and_no_object() -> None:
    tree = INFO.to_tree()
    del tree["fingerprint"]
    with pytest.raises(EngineFailure, match="missing required field `fingerprint`"):
        from_tree(tree)
    with pytest.raises(EngineFailure, match="Expected `object`, got `str`"):
        from_tree("decode")
