"""CPU attention whose cost is new tokens x context.

SGLang's `torch_native` backend pads the new queries to the whole context, so a request with a
cached prefix costs as much as one without. Here only the new queries are computed, in blocks
that bound memory, against the keys each block may see.

The maths alone, without SGLang; `attention_backend.py` is the backend built on it.

Per-sequence loops are deliberate. Measured on one core, padding several decodes into one
batched product is 4x slower than the loop, and the loop keeps a sequence's result independent
of what else is in the batch.
"""

from __future__ import annotations

import itertools
import math

import torch

BLOCK_TOKENS = 64
"""Query rows computed together. The grid is absolute (multiples of this position), so that a
query sees the same block of keys wherever the prompt was cut into chunks."""

SUM_KEYS = 256
FEW_ROWS = 64
"""Keys added up at once, and for how many rows: see `_weighted_sum`."""

FUSED_NEW, FUSED_PREFIX = 64, 1024
"""From these sizes on the fused kernel is faster by a quarter and more."""

_BLOCK_SCORES = 1 << 24
"""Bound on scores held at once (64 MiB in float32): long contexts get smaller blocks."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of the last `n` positions of one sequence over all of it.

    Args:
        query: [n, q_heads, dim], the newest `n` positions.
        key, value: [total, kv_heads, dim] and [total, kv_heads, value_dim], `total` >= `n`;
            `q_heads` is a multiple of `kv_heads`.
        scale: factor on query x key.
        causal: position `total - n + i` sees keys up to itself; otherwise every key.

    Returns:
        [n, q_heads, value_dim] in the dtype of `query`. Half types are computed in float32.
    """
    new, q_heads, dim = query.shape
    total, kv_heads, value_dim = value.shape
    if new > total or q_heads % kv_heads:
        raise ValueError(
            f"query {tuple(query.shape)} does not fit key {tuple(key.shape)}: needs no more rows "
            "than keys and a multiple of the key heads"
        )
    group = q_heads // kv_heads
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    keys = key.movedim(0, 1).to(compute)
    values = value.movedim(0, 1).to(compute)
    if causal and new >= FUSED_NEW and total - new >= FUSED_PREFIX and compute is torch.float32:
        return _fused(query.to(compute), keys, values, scale).to(query.dtype)
    if new > 1:  # one row reads each key once: a copy would cost more than the product
        keys, values = keys.contiguous(), values.contiguous()
    keys = keys.transpose(1, 2)
    queries = (query.to(compute) * scale).view(new, kv_heads, group, dim).permute(1, 2, 0, 3)
    out = torch.empty((kv_heads, group, new, value_dim), dtype=compute, device=query.device)
    for start, end in _blocks(total - new, total, q_heads):
        seen = end if causal else total
        rows = slice(start - (total - new), end - (total - new))
        count = end - start
        block = queries[:, :, rows].reshape(kv_heads, group * count, dim)
        scores = torch.bmm(block, keys[:, :, :seen])
        if causal and count > 1:
            _hide_future(scores.view(kv_heads, group, count, seen))
        mixed = _weighted_sum(torch.softmax(scores, dim=-1), values[:, :seen])
        out[:, :, rows] = mixed.view(kv_heads, group, count, value_dim)
    return out.permute(2, 0, 1, 3).reshape(new, q_heads, value_dim).to(query.dtype)


def _fused(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """The prefix (all of it visible) and the new tokens (causal) through torch's tiled CPU
    kernel apart, joined by their log-sum-exp. The public function does not return that.

    Args:
        query: [n, q_heads, dim]; keys, values: [kv_heads, total, dim]; all float32.

    Returns:
        [n, q_heads, value_dim]
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (new, q_heads, dim), kv_heads = query.shape, keys.shape[0]
    group, prefix = q_heads // kv_heads, keys.shape[1] - new
    by_head = query.movedim(0, 1)
    old, old_lse = kernel(
        by_head.reshape(1, kv_heads, group * new, dim),
        keys[None, :, :prefix],
        values[None, :, :prefix],
        0.0,
        False,
        scale=scale,
    )
    recent, recent_lse = kernel(
        by_head[None],
        keys[None, :, prefix:].repeat_interleave(group, dim=1),
        values[None, :, prefix:].repeat_interleave(group, dim=1),
        0.0,
        True,
        scale=scale,
    )
    share = torch.sigmoid(recent_lse.reshape(q_heads, new) - old_lse.reshape(q_heads, new))
    joined = torch.lerp(old.reshape(q_heads, new, -1), recent[0], share.unsqueeze(-1))
    return joined.movedim(0, 1)


def attend_extend(
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: list[torch.Tensor],
    new_lens: list[int],
    *,
    scale: float,
    causal: bool = True,
) -> None:
    """Attention of several sequences' new tokens over the paged cache, into `output`.

    Args:
        query: [sum(new_lens), q_heads, dim], sequences one after the other.
        output: [sum(new_lens), q_heads, value_dim], written.
        k_cache, v_cache: [slots, kv_heads, dim]; already hold the new tokens.
        slots: per sequence, the cache rows of all its tokens in order.
        new_lens: per sequence, how many of them are new (0 allowed).
    """
    start = 0
    for rows, new in zip(slots, new_lens, strict=True):
        if new == 0:
            continue
        output[start : start + new] = attend(
            query[start : start + new],
            k_cache.index_select(0, rows),
            v_cache.index_select(0, rows),
            scale=scale,
            causal=causal,
        )
        start += new


def attend_decode(
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: list[torch.Tensor],
    *,
    scale: float,
) -> None:
    """One new token per sequence; shapes as in `attend_extend`."""
    attend_extend(query, output, k_cache, v_cache, slots, [1] * len(slots), scale=scale)


def _blocks(first: int, last: int, q_heads: int) -> list[tuple[int, int]]:
    """Cut positions [first, last) at multiples of the block size."""
    size = BLOCK_TOKENS
    while size > 1 and size * q_heads * last > _BLOCK_SCORES:
        size //= 2
    cuts = [first, *range((first // size + 1) * size, last, size), last]
    return list(itertools.pairwise(cuts))


def _weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weights [heads, rows, seen] x values [heads, seen, dim].

    Products with few rows are added in partial sums over spans of keys: the library's
    matrix-vector path adds all keys in one run, with up to 6 times the rounding error.
    """
    _, rows, seen = weights.shape
    if rows > FEW_ROWS:
        return torch.bmm(weights, values)
    whole = seen // SUM_KEYS * SUM_KEYS
    total = torch.bmm(weights[:, :, whole:], values[:, whole:])
    if whole:
        spans = weights[:, :, :whole].unflatten(2, (-1, SUM_KEYS)).transpose(1, 2)
        parts = torch.matmul(spans, values[:, :whole].unflatten(1, (-1, SUM_KEYS)))
        total += parts.sum(dim=1)
    return total


def _hide_future(scores: torch.Tensor) -> None:
    """Mask, in place, the keys after each query; scores: [..., count, seen], newest last."""
    count = scores.shape[-2]
    future = torch.ones((count, count), dtype=torch.bool, device=scores.device).triu(1)
    scores[..., -count:].masked_fill_(future, -math.inf)
