"""Page allocation in torch gives what upstream's reference implementation gives."""

from __future__ import annotations

import importlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_sglang.cpu import paging
from dualpath_sglang.cpu.shims import install_shims

install_shims()
PAGES = [1, 4, 16]


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    page = draw(st.sampled_from(PAGES))
    rows = draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=6))
    return page, [p for p, _ in rows], [p + n for p, n in rows]


def last_slots(prefix: list[int], page: int) -> torch.Tensor:
    """A last slot that lies where the prefix ends within its page, in pages far from the free."""
    slots = [-1 if p == 0 else (900 + i) * page + (p - 1) % page for i, p in enumerate(prefix)]
    return torch.tensor(slots, dtype=torch.int64)


@settings(deadline=None, max_examples=200)
@given(batches())
def test_extend_equals_upstreams_reference(batch: tuple[int, list[int], list[int]]) -> None:
    page, prefix, ends = batch
    upstream = importlib.import_module("sglang.srt.mem_cache.allocator.paged").alloc_extend_naive
    lens, seqs = torch.tensor(prefix), torch.tensor(ends)
    free = torch.randperm(600, generator=torch.Generator().manual_seed(sum(ends))) + 1
    last = last_slots(prefix, page)
    expected = torch.empty(sum(ends) - sum(prefix), dtype=torch.int64)
    upstream(lens, seqs, last, free, expected, page, "cpu")
    slots, taken = paging.extend_slots(lens, seqs, last, free, page)
    assert slots.tolist() == expected.tolist()
    assert taken == sum(-(-e // page) - -(-p // page) for p, e in zip(prefix, ends, strict=True))


def test_extend_says_how_many_pages_lack() -> None:
    slots, needed = paging.extend_slots(
        torch.tensor([0]), torch.tensor([33]), torch.tensor([-1]), torch.tensor([1, 2]), 16
    )
    assert (slots.numel(), needed) == (0, 3)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(PAGES), st.lists(st.integers(1, 70), min_size=1, max_size=8))
def test_decode_takes_a_page_only_where_one_opens(page: int, lens: list[int]) -> None:
    last = last_slots([n - 1 for n in lens], page)
    free = torch.arange(1, 20)
    slots, taken = paging.decode_slots(torch.tensor(lens), last, free, page)
    opens = [(n - 1) % page == 0 for n in lens]
    assert taken == sum(opens)
    fresh = iter(free.tolist())
    expected = [
        next(fresh) * page if o else before + 1
        for o, before in zip(opens, last.tolist(), strict=True)
    ]
    assert slots.tolist() == expected


def test_decode_accepts_the_int32_slots_that_sglang_passes() -> None:
    last = torch.tensor([15, 3], dtype=torch.int32)
    slots, taken = paging.decode_slots(torch.tensor([17, 5]), last, torch.tensor([7]), 16)
    assert (slots.tolist(), taken) == ([112, 4], 1)
