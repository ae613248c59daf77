"""Pages survive the way to the host pool and back, and nothing else is written."""

from __future__ import annotations

import pytest
import torch

from dualpath_sglang.cpu.host_copy import (
    transfer_kv_all_layer_direct_lf_pf,
    transfer_kv_per_layer_direct_pf_lf,
)

LAYERS, HEADS, DIM = 3, 2, 4


def device_layers(slots: int) -> list[torch.Tensor]:
    return [torch.randn(slots, HEADS, DIM) for _ in range(2 * LAYERS)]  # all K, then all V


def slots_of(pages: list[int], page: int) -> torch.Tensor:
    return torch.cat([torch.arange(p * page, (p + 1) * page) for p in pages])


@pytest.mark.parametrize("page", [1, 4, 16])
def test_round_trip(page: int) -> None:
    device = device_layers(8 * page + 1)  # SGLang's pool has one row too many for whole pages
    host = [torch.zeros(10, LAYERS, page, HEADS, DIM) for _ in range(2)]
    from_pages, to_pages, back_pages = [1, 5, 2], [9, 0, 4], [6, 3, 7]
    transfer_kv_all_layer_direct_lf_pf(
        device, host, slots_of(from_pages, page), slots_of(to_pages, page), page
    )
    untouched = [p for p in range(10) if p not in to_pages]
    assert all(bool((pool[untouched] == 0).all()) for pool in host)
    fresh = [torch.zeros_like(layer) for layer in device]
    for layer in range(LAYERS):
        transfer_kv_per_layer_direct_pf_lf(
            host,
            [fresh[layer], fresh[LAYERS + layer]],
            slots_of(to_pages, page),
            slots_of(back_pages, page),
            layer,
            page,
        )
    for before, after in zip(device, fresh, strict=True):
        wanted = before[slots_of(from_pages, page)]
        assert torch.equal(after[slots_of(back_pages, page)], wanted)


def test_one_buffer_for_k_and_v_as_mla_has_it() -> None:
    page, device = 4, [torch.randn(16, 1, DIM) for _ in range(LAYERS)]
    host = [torch.zeros(4, LAYERS, page, 1, DIM)]
    transfer_kv_all_layer_direct_lf_pf(device, host, slots_of([1], 4), slots_of([3], 4), page)
    for layer in range(LAYERS):
        assert torch.equal(host[0][3, layer], device[layer][4:8])
