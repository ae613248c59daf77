"""The whole product on real parts: exact tokens from replayed agent sessions, each prefix loaded
once, over either way, also after both engines were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from replays import MIDWAY, SESSIONS, TURNS, full_pages, records, replay_with_restart

from agent_runtime.stack.stack import RunningStack


@pytest.fixture(scope="module")
def replayed(
    pair: RunningStack,
    reference: str,
    model_dir: Path,
    swebench: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("replay")
    return replay_with_restart(pair, reference, model_dir, swebench, out)


def test_every_token_is_that_of_a_plain_engine(replayed: dict[str, Any]) -> None:
    assert replayed["errors"] == 0
    assert replayed["compared_turns"] == replayed["turns"] == SESSIONS * TURNS
    assert replayed["outputs_equal"]


def test_after_the_restart_prompts_are_loaded_not_computed(replayed: dict[str, Any]) -> None:
    for record in records(replayed, MIDWAY):
        loaded = record["prefill"]["storage"] + record["prefill"].get("peer", 0)
        assert loaded >= 0.9 * full_pages(record["keep"]), record
