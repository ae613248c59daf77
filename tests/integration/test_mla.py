"""A DeepSeek-type model (MLA: one latent for K and V) over the second path."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from mla_model import KV_BYTES, write_mla_model
from second_path_rig import duo, plain, prompt
from stacks import plain_engine

PAGES = 40
OF_PAGE = 16 * KV_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mla_model(tmp_path_factory.mktemp("mla") / "mla-model")


@pytest.fixture(scope="module")
def mla_reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with plain_engine(model, tmp_path_factory.mktemp("mla-reference")) as url:
        yield url


def test_every_split_gives_the_tokens_and_reads_once(
    model: Path, mla_reference: str, tmp_path: Path
) -> None:
    rng = random.Random(8)
    tokens = prompt(rng, PAGES)
    expected = plain(mla_reference, tokens)
    assert len(set(expected)) > 1
    with duo(model, tmp_path) as made:
        layout = made.info("decode").key_layout
        assert layout is not None
        assert len(layout.suffixes) == 1
        assert made.info("decode").kv_bytes_per_token == KV_BYTES
        assert made.without_plan(tokens).tokens == expected
        made.settle()
        for k in (0, 1, PAGES // 2, PAGES - 1, PAGES):
            made.flush()
            before = made.all_counts()
            answer = made.ask(tokens, made.plan(PAGES, k))
            assert answer.errors == []
            assert answer.tokens == expected, f"k={k}"
            moved = made.moved(before)
            assert moved.get("decode_to_prefill", 0) == k * OF_PAGE, f"k={k}"
            assert moved.get("store_to_decode", 0) == k * OF_PAGE, f"k={k}"
            assert moved.get("store_to_prefill", 0) == (PAGES - k) * OF_PAGE, f"k={k}"
            assert moved.get("prefill_to_decode", 0) == (len(tokens) - k * 16) * KV_BYTES
            assert answer.prefill["peer"] == k * 16
        assert made.fallbacks("prefill") == made.fallbacks("decode") == {}


@pytest.mark.full
@pytest.mark.parametrize("verify", ["0", "1"])
def test_a_spoiled_page_shows_without_checksums_and_is_refused_with_them(
    model: Path, tmp_path: Path, verify: str
) -> None:
    env = {"DUALPATH_ENGINE_VERIFY_PAGES": verify}
    tokens = prompt(random.Random(9), PAGES)
    with duo(model, tmp_path, env=env, decode={"DUALPATH_ENGINE_FAULT": "peer_corrupt"}) as made:
        right = made.without_plan(tokens, output=16).tokens
        made.settle()
        made.wait_idle("prefill", 60)
        answer = made.ask(tokens, made.plan(PAGES, PAGES // 2), output=16)
    assert answer.errors == []
    assert answer.prefill["peer"] == (0 if verify == "1" else PAGES // 2 * 16)
    assert (answer.tokens == right) == (verify == "1")
