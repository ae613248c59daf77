"""Page allocation in plain torch, for the two Triton kernels of SGLang's paged allocator
(`mem_cache/allocator/paged.py`). No interpreter on the hot path.

Terms: a *slot* is one token's index in the device KV pool, `page * page_size + offset`.
"""

from __future__ import annotations

import torch


def extend_slots(
    prefix_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    last_slots: torch.Tensor,
    free_pages: torch.Tensor,
    page_size: int,
) -> tuple[torch.Tensor, int]:
    """Slots for the new tokens of each sequence, in batch order.

    `prefix_lens`, `seq_lens`, `last_slots`: int64 [batch]; `last_slots` is the slot of the
    last prefix token (only used where a prefix ends inside a page). `free_pages`: int64.
    Returns (slots int64 [sum(seq - prefix)], pages taken from the front of `free_pages`).
    If more pages are needed than there are, returns (empty, pages needed).
    """
    pieces: list[torch.Tensor] = []
    taken = 0
    for prefix, end, last in zip(
        prefix_lens.tolist(), seq_lens.tolist(), last_slots.tolist(), strict=True
    ):
        count = end - prefix
        head = min(count, -prefix % page_size)  # room left in the last prefix page
        if head:
            pieces.append(torch.arange(last + 1, last + 1 + head, dtype=torch.int64))
        rest = count - head
        if rest:
            pages = -(-rest // page_size)
            fresh = free_pages[taken : taken + pages]
            slots = fresh[:, None] * page_size + torch.arange(page_size)
            pieces.append(slots.reshape(-1)[:rest])
            taken += pages
    if taken > free_pages.numel():
        return torch.empty(0, dtype=torch.int64), taken
    if not pieces:
        return torch.empty(0, dtype=torch.int64), 0
    return torch.cat(pieces), taken


def decode_slots(
    seq_lens: torch.Tensor,
    last_slots: torch.Tensor,
    free_pages: torch.Tensor,
    page_size: int,
) -> tuple[torch.Tensor, int]:
    """One new slot per sequence; `seq_lens` already counts the new token.

    A sequence whose new token opens a page takes the next free page, in batch order.
    """
    opens = (seq_lens - 1) % page_size == 0
    taken = int(opens.sum())
    if taken > free_pages.numel():
        return torch.empty(0, dtype=torch.int64), taken
    slots = last_slots.to(torch.int64) + 1
    slots[opens] = free_pages[:taken] * page_size
    return slots, taken
