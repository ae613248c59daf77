"""Equal content has equal ids, other content other ids, and no special token appears."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.tokens import TokenSource, TokenSpace, space_of_model
from benchmarks.replay.trace import Session, Turn
from dualpath_sglang.contract.errors import ConfigError

SOURCE = TokenSource(TokenSpace(50_000))


def plain(dataset: str, sid: str, *appends: int) -> Session:
    turns: list[Turn] = []
    for append in appends:
        turns.append(Turn(turns[-1].context if turns else 0, append, 5, 5))
    return Session(dataset, sid, tuple(turns))


def hashed(sid: str, *runs: tuple[int, int], append: int = 100, scope: str = "x") -> Session:
    return Session("d", sid, (Turn(0, append, 1, 1, None, 0, runs),), 10, scope)


def test_unhashed_tokens_are_named_by_dataset_session_and_turn() -> None:
    base = SOURCE.appended(plain("d", "s", 30, 30))
    assert base == SOURCE.appended(plain("d", "s", 30, 30))
    assert base[0] != base[1]
    assert base != SOURCE.appended(plain("d", "t", 30, 30))
    assert base != SOURCE.appended(plain("e", "s", 30, 30))
    assert SOURCE.appended(plain("d", "s", 31, 29))[0][:30] == base[0]


def test_golden_ids() -> None:
    assert SOURCE.appended(plain("d", "s", 4)) == GOLDEN


GOLDEN = [[48211, 2149, 35462, 10523]]


def test_equal_hash_ids_give_equal_tokens_across_sessions() -> None:
    (one,) = SOURCE.appended(hashed("one", (1, 10)))
    (two,) = SOURCE.appended(hashed("two", (1, 4), (50, 6)))
    assert one[:40] == two[:40]
    assert all(one[i : i + 10] != two[i : i + 10] for i in range(40, 100, 10))
    (other,) = SOURCE.appended(hashed("one", (1, 10), scope="y"))
    assert other[:10] != one[:10]


def test_the_tail_past_the_ids_belongs_to_the_turn() -> None:
    (one,) = SOURCE.appended(hashed("one", (1, 10), append=107))
    (two,) = SOURCE.appended(hashed("two", (1, 10), append=107))
    assert one[:100] == two[:100]
    assert one[100:] != two[100:]


@given(st.integers(1, 60), st.integers(0, 40), st.integers(1, 60))
def test_later_turns_continue_the_block_they_start_in(first: int, out: int, second: int) -> None:
    """A position's token depends on its block and offset only, not on where the turn starts."""
    end = first + out + second
    blocks, keep = first // 10, first + out
    added = ((blocks, end // 10 - blocks),)
    turns = (
        Turn(0, first, out, out, None, 0, ((0, blocks),)),
        Turn(keep, second, 1, 1, None, blocks, added, hash_at=keep),
    )
    one, two = SOURCE.appended(Session("d", "s", turns, 10, "x"))
    (whole,) = SOURCE.appended(hashed("s", (0, end // 10), append=end))
    hashed_end = end // 10 * 10
    assert one[: first // 10 * 10] == whole[: first // 10 * 10]
    assert two[: max(0, hashed_end - first - out)] == whole[first + out : hashed_end]


def test_avoided_ids_never_appear() -> None:
    source = TokenSource(TokenSpace(10, frozenset({0, 3, 9})))
    (tokens,) = source.appended(plain("d", "s", 2000))
    assert set(tokens) == {1, 2, 4, 5, 6, 7, 8}


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="no usable token"):
        TokenSpace(2, frozenset({0, 1}))


def test_space_of_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 8}))
    tokenizer = {"added_tokens": [{"id": 5}], "model": {"vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"3": {}}}')
    assert list(space_of_model(tmp_path).allowed()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("config", "tokenizer", "problem"),
    [
        ({"vocab_size": 10**12}, {}, "vocab_size is above 16,777,216"),
        ({"text_config": [1]}, {}, "has no vocab_size"),
        ({"vocab_size": "8"}, {}, "has no vocab_size"),
        ({"vocab_size": 8}, {"added_tokens": [{"x": 1}]}, "are damaged: KeyError"),
        ({"vocab_size": 8}, {"added_tokens": 5}, "are damaged: TypeError"),
        ({"vocab_size": 8}, {"model": []}, "are damaged: AttributeError"),
    ],
)
def test_a_damaged_model_folder(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any], problem: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=problem):
        space_of_model(tmp_path)


def test_a_vocabulary_too_large_to_list() -> None:
    assert len(TokenSpace(2**31).allowed()) == 2**31
    for size, avoid in ((2**31 + 1, frozenset[int]()), (10**9, frozenset({3}))):
        with pytest.raises(ConfigError, match="a vocabulary has at most"):
            TokenSpace(size, avoid)


def test_a_model_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        space_of_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no vocab_size"):
        space_of_model(tmp_path)
