"""Page hashes of growing histories, and the objects of a page (SGLang: test_sglang_keys)."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_sglang.contract import pages
from dualpath_sglang.contract.pages import KeyLayout, PageHasher, page_hashes

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=80)


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 90), token_lists), max_size=5))
def test_a_history_that_is_cut_and_grows_hashes_as_if_new(
    page_size: int, turns: list[tuple[int, list[int]]]
) -> None:
    hasher = PageHasher(page_size)
    history: list[int] = []
    for keep, appended in turns:
        history = history[:keep] + appended
        hasher.keep(keep)
        hasher.extend(array("I", history))
        assert hasher.hashes() == page_hashes(history, page_size)
        assert hasher.pages == len(history) // page_size


def test_only_appended_pages_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    original = pages._bytes
    monkeypatch.setattr(pages, "_bytes", lambda part: packed.append(len(part)) or original(part))
    hasher = PageHasher(16)
    hasher.extend(list(range(160)))
    assert sum(packed) == 160
    packed.clear()
    hasher.extend(list(range(160 + 33)))
    assert packed == [16, 16]
    packed.clear()
    hasher.keep(100)
    hasher.extend(list(range(112)))
    assert packed == [16]


def test_what_follows_is_hashed_and_not_kept() -> None:
    history = list(range(100))
    hasher = PageHasher(16)
    hasher.extend(history)
    other = [*history[:50], *range(900, 970)]
    assert hasher.following(other, 3, 7) == page_hashes(other, 16)[3:7]
    assert hasher.following(other, 0, 2) == page_hashes(other, 16)[:2]
    assert hasher.following(other, 3, 3) == []
    assert hasher.hashes() == page_hashes(history, 16)
    assert hasher.hashes(4) == hasher.hashes()[4:]


@given(token_lists.filter(lambda t: len(t) >= 8), st.integers(0, 7))
def test_a_hash_names_the_whole_prefix(tokens: list[int], changed: int) -> None:
    other = list(tokens)
    other[changed] = (other[changed] + 1) % 2**32
    first, second = page_hashes(tokens, 4), page_hashes(other, 4)
    unchanged = changed // 4
    assert first[:unchanged] == second[:unchanged]
    assert not set(first[unchanged:]) & set(second[unchanged:])


def test_object_keys_cover_every_suffix() -> None:
    layout = KeyLayout("m_", ("_0_k", "_0_v", "_1_k", "_1_v"), 16, 2)
    assert layout.object_keys("ff") == ("m_ff_0_k", "m_ff_0_v", "m_ff_1_k", "m_ff_1_v")


def test_impossible_page_and_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PageHasher(0)
    with pytest.raises(OverflowError):
        page_hashes([-1], 1)
