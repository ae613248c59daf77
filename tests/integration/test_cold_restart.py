"""Upstream's caching with our accounts (`hooks: reports`): each side reads the whole prefix itself.

After both engines were killed, all they can have is what the store has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from replays import (
    KV_BYTES_PER_TOKEN,
    MIDWAY,
    SESSIONS,
    TURNS,
    full_pages,
    records,
    replay_with_restart,
)
from stacks import pair_config

from agent_runtime.stack.stack import Stack


@pytest.fixture(scope="module")
def replayed(
    model_dir: Path, reference: str, swebench: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    config = pair_config(model_dir, tmp_path_factory.mktemp("upstream"), hooks="reports")
    with Stack(config).start() as stack:
        out = tmp_path_factory.mktemp("replay")
        return replay_with_restart(stack, reference, model_dir, swebench, out)


def test_every_token_is_that_of_a_plain_engine(replayed: dict[str, Any]) -> None:
    assert replayed["errors"] == 0
    assert replayed["compared_turns"] == replayed["turns"] == SESSIONS * TURNS
    assert replayed["outputs_equal"]


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_the_restarted_engine_reads_the_prefix_from_the_store(
    replayed: dict[str, Any], side: str
) -> None:
    """At least 90 % of the full pages of each session's next prompt."""
    for record in records(replayed, MIDWAY):
        tiers = record[side]
        assert tiers["device"] == tiers["host"] == 0
        assert tiers["storage"] >= 0.9 * full_pages(record["keep"]), record
    next_prompts = sum(full_pages(r["prompt_tokens"]) for r in records(replayed, MIDWAY))
    assert sum(r[side]["storage"] for r in records(replayed, MIDWAY)) >= 0.9 * next_prompts


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_the_engine_itself_counted_the_bytes(replayed: dict[str, Any], side: str) -> None:
    next_prompts = sum(full_pages(r["prompt_tokens"]) for r in records(replayed, MIDWAY))
    counted = replayed["counters"][side][f"store_to_{side}"]
    assert counted >= 0.9 * next_prompts * KV_BYTES_PER_TOKEN


def test_generated_tokens_are_hits_of_the_next_turn(replayed: dict[str, Any]) -> None:
    """On D at once, which generated them; after the restart on both, through the store."""
    for turn in range(1, TURNS):
        for record in records(replayed, turn):
            held = sum(record["decode"].values())
            # The last token was never fed back, so a page that it completes is not there yet.
            assert held >= full_pages(record["keep"] - 1), record
