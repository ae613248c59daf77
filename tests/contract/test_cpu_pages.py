"""On a CPU, SGLang's own page allocator gives out each page once and says when pages lack.

It has torch-native kernels since 0.5.22; before that, a hook stood in for its Triton kernels.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_sglang.cpu.shims import install_shims

PAGES = [2, 4, 16]
"""Pages of one token have another allocator."""
Rows = list[tuple[int, int]]


@pytest.fixture(scope="module")
def kind() -> Any:
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
    return PagedTokenToKVPoolAllocator


def make(kind: Any, page: int, pages: int) -> Any:
    made = kind(pages * page, page, torch.float32, "cpu", None, need_sort=False)
    assert not made.use_triton_kernels
    return made


def extend(allocator: Any, rows: Rows, last: list[int]) -> list[int] | None:
    """Slots for each row's tokens from its first number to its second; `last` slots before them."""
    before, after = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    new = sum(b - a for a, b in rows)
    slots = allocator.alloc_extend(before, before, after, after, torch.tensor(last), new)
    return None if slots is None else slots.tolist()


def decode(allocator: Any, lengths: list[int], last: list[int]) -> list[int] | None:
    lens = torch.tensor(lengths)
    # SGLang passes 32-bit slots here.
    slots = allocator.alloc_decode(lens, lens, torch.tensor(last, dtype=torch.int32))
    return None if slots is None else slots.tolist()


def expected(free: list[int], rows: Rows, last: list[int], page: int) -> list[int] | None:
    """Row by row, token by token: the next slot of the page, or the first of the next free page."""
    left, slots = list(free), []
    for (start, end), slot in zip(rows, last, strict=True):
        for position in range(start, end):
            if position % page == 0:
                if not left:
                    return None
                slot = left.pop(0) * page
            else:
                slot += 1
            slots.append(slot)
    return slots


def far_from_free(prefix: int, number: int, page: int) -> int:
    """The last slot of a prefix that lies in a page of its own."""
    return -1 if prefix == 0 else (900 + number) * page + (prefix - 1) % page


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(PAGES),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=6),
    st.integers(0, 60),
)
def test_new_tokens_of_a_batch(kind: Any, page: int, rows: Rows, pages: int) -> None:
    rows = [(prefix, prefix + new) for prefix, new in rows]
    last = [far_from_free(prefix, i, page) for i, (prefix, _) in enumerate(rows)]
    allocator = make(kind, page, max(1, pages))
    free = allocator.free_pages.tolist()
    wanted = expected(free, rows, last, page)
    assert extend(allocator, rows, last) == wanted
    taken = 0 if wanted is None else len({slot // page for slot in wanted} & set(free))
    assert allocator.free_pages.tolist() == free[taken:]


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(PAGES),
    st.lists(st.integers(1, 70), min_size=1, max_size=8),
    st.integers(1, 20),
)
def test_one_more_token_each(kind: Any, page: int, lengths: list[int], pages: int) -> None:
    last = [far_from_free(n - 1, i, page) for i, n in enumerate(lengths)]
    allocator = make(kind, page, pages)
    wanted = expected(allocator.free_pages.tolist(), [(n - 1, n) for n in lengths], last, page)
    assert decode(allocator, lengths, last) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_has_two_owners(kind: Any, seed: int) -> None:
    """Sequences come, grow and go in a pool too small for all of them."""
    rng, page, pages = random.Random(seed), 4, 24
    allocator = make(kind, page, pages)
    held: list[list[int]] = []
    refused = 0
    for _ in range(300):
        if held and rng.random() < 0.3:
            allocator.free(torch.tensor(held.pop(rng.randrange(len(held)))))
        elif held and rng.random() < 0.6:
            slots = decode(allocator, [len(h) + 1 for h in held], [h[-1] for h in held])
            refused += slots is None
            for owner, slot in zip(held, slots or [], strict=False):
                owner.append(slot)
        else:
            new = rng.randrange(1, 40)
            found = extend(allocator, [(0, new)], [-1])
            refused += found is None
            if found is not None:
                held.append(found)
        everything = [slot for owner in held for slot in owner]
        assert len(set(everything)) == len(everything)
        used = {slot // page for slot in everything}
        assert allocator.available_size() == (pages - len(used)) * page
    assert refused > 0
