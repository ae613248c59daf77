"""Copies between the device KV pool and the host KV pool, in torch, for
`--hicache-io-backend direct --hicache-mem-layout page_first_direct`.

Shapes, for K and for V alike: a device layer is [slots, heads, dim]; the host pool is
[pages, layers, page_size, heads, dim]. Slot lists hold whole pages in order, so every
`page_size`-th entry names a page. The functions keep the names and keyword arguments by
which `mem_cache/pool_host/mha.py` and `mla.py` call the CUDA versions (missing on CPU there).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _pages(slots: torch.Tensor, page_size: int) -> torch.Tensor:
    return slots[::page_size] // page_size


def _layer_as_pages(layer: torch.Tensor, page_size: int) -> torch.Tensor:
    """View [slots, ...] as [pages, page_size, ...]; a tail shorter than a page is left out."""
    whole = layer.shape[0] // page_size
    return layer[: whole * page_size].view(whole, page_size, *layer.shape[1:])


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Device layers -> host pages. `src_ptrs` holds all K layers, then all V layers (MHA),
    or the layers of one buffer (MLA); `dst_ptrs` the matching host pools."""
    src_pages, dst_pages = _pages(src_indices, page_size), _pages(dst_indices, page_size)
    per_pool = len(src_ptrs) // len(dst_ptrs)
    for number, host in enumerate(dst_ptrs):
        for layer in range(per_pool):
            device = _layer_as_pages(src_ptrs[number * per_pool + layer], page_size)
            host[dst_pages, layer] = device[src_pages]


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Host pages -> one device layer, for each (host pool, device layer) pair."""
    src_pages, dst_pages = _pages(src_indices, page_size), _pages(dst_indices, page_size)
    for host, device in zip(src_ptrs, dst_ptrs, strict=True):
        _layer_as_pages(device, page_size)[dst_pages] = host[src_pages, layer_id]
