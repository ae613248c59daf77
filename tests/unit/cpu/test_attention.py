"""Our attention against SGLang's own torch_native over a grid of shapes."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_sglang.cpu import attention, hooks
from dualpath_sglang.cpu.shims import install_shims

DIM = 32
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-2}
# (cached prefix, new tokens) of every sequence of a batch
BATCHES = {
    "no prefix": [(0, 1), (0, 17), (0, 130)],
    "short prefix": [(16, 1), (16, 16), (48, 5)],
    "prefix off the page grid": [(37, 64), (63, 1), (65, 66)],
    "block edges": [(64, 64), (128, 65), (0, 64)],
    "long prefix": [(700, 3), (1008, 16)],
    "fused": [(1024, 64), (1100, 131)],
    "one token": [(0, 1)],
}


@dataclass
class Paged:
    """A batch in a paged cache, its pages scattered at random."""

    query: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    req_to_token: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    prefix_lens: torch.Tensor
    new_lens: torch.Tensor


def paged(
    batch: list[tuple[int, int]],
    *,
    page: int,
    heads: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Paged:
    rng = torch.Generator().manual_seed(seed)
    q_heads, kv_heads = heads
    prefix = torch.tensor([p for p, _ in batch])
    new = torch.tensor([n for _, n in batch])
    total = prefix + new
    pages = [-(-int(t) // page) for t in total]
    order = torch.randperm(sum(pages), generator=rng)
    rows = torch.randperm(len(batch) + 2, generator=rng)[: len(batch)]
    req_to_token = torch.zeros((len(batch) + 2, int(total.max()) + 7), dtype=torch.int32)
    at = 0
    for row, count, length in zip(rows.tolist(), pages, total.tolist(), strict=True):
        starts = order[at : at + count] * page
        slots = (starts[:, None] + torch.arange(page)).flatten()[:length]
        req_to_token[row, :length] = slots.to(torch.int32)
        at += count

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(dtype)

    slots_total = sum(pages) * page
    return Paged(
        query=noise(int(new.sum()), q_heads, DIM),
        k_cache=noise(slots_total, kv_heads, DIM),
        v_cache=noise(slots_total, kv_heads, DIM),
        req_to_token=req_to_token,
        rows=rows,
        seq_lens=total,
        prefix_lens=prefix,
        new_lens=new,
    )


@pytest.fixture(scope="module")
def registry() -> Any:
    """SGLang's attention registry. Importing SGLang on a CPU warns about missing kernels."""
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.layers.attention import attention_registry
    return attention_registry


@pytest.fixture(scope="module")
def classes(registry: Any) -> tuple[type[Any], type[Any]]:
    """(SGLang's backend class, ours)"""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from dualpath_sglang.cpu.attention_backend import PrefixAttnBackend

    return TorchNativeAttnBackend, PrefixAttnBackend


def extend(cls: type[Any], case: Paged, **options: Any) -> torch.Tensor:
    backend = object.__new__(cls)  # the constructor wants a model runner; the maths needs none
    options = {"scaling": None, "enable_gqa": True, "causal": True} | options
    output = torch.full_like(case.query, float("nan"))
    backend._run_sdpa_forward_extend(
        case.query,
        output,
        case.k_cache,
        case.v_cache,
        case.req_to_token,
        case.rows,
        case.seq_lens,
        case.prefix_lens,
        case.new_lens,
        **options,
    )
    return output


def decode(cls: type[Any], case: Paged, **options: Any) -> torch.Tensor:
    backend = object.__new__(cls)
    options = {"scaling": 0.3, "enable_gqa": True, "causal": False} | options
    output = torch.full_like(case.query, float("nan"))
    backend._run_sdpa_forward_decode(
        case.query,
        output,
        case.k_cache,
        case.v_cache,
        case.req_to_token,
        case.rows,
        case.seq_lens,
        **options,
    )
    return output


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (8, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("name", BATCHES)
def test_extend_equals_upstream(
    classes: tuple[type[Any], type[Any]],
    name: str,
    page: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    upstream, ours = classes
    case = paged(BATCHES[name], page=page, heads=heads, dtype=dtype)
    difference = (extend(ours, case).float() - extend(upstream, case).float()).abs().max()
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (8, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("page", [1, 16])
def test_decode_equals_upstream(
    classes: tuple[type[Any], type[Any]], page: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    upstream, ours = classes
    case = paged([(0, 1), (15, 1), (16, 1), (1007, 1)], page=page, heads=heads, dtype=dtype)
    difference = (decode(ours, case).float() - decode(upstream, case).float()).abs().max()
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"scaling": 0.05},
        {"sliding_window_size": 20},
        {"encoder_lens": torch.tensor([3, 0]), "is_cross_attn": False},
        {"encoder_lens": torch.tensor([40, 9]), "is_cross_attn": True, "causal": False},
    ],
    ids=["not causal", "scale", "sliding window", "encoder", "cross attention"],
)
def test_other_kinds_of_attention_equal_upstream(
    classes: tuple[type[Any], type[Any]], options: dict[str, Any]
) -> None:
    upstream, ours = classes
    case = paged([(0, 40), (0, 9)], page=16, heads=(4, 2))
    if "encoder_lens" in options:  # self attention then starts behind the encoder's tokens
        case.req_to_token = torch.cat([case.req_to_token, case.req_to_token], dim=1)
    assert torch.allclose(
        extend(ours, case, **options), extend(upstream, case, **options), atol=5e-6
    )


def test_sliding_window_decode_equals_upstream(classes: tuple[type[Any], type[Any]]) -> None:
    upstream, ours = classes
    case = paged([(99, 1), (10, 1)], page=16, heads=(4, 2))
    options = {"sliding_window_size": 20}
    assert torch.allclose(
        decode(ours, case, **options), decode(upstream, case, **options), atol=5e-6
    )


def test_cache_of_another_dtype(classes: tuple[type[Any], type[Any]]) -> None:
    upstream, ours = classes
    case = paged([(33, 20)], page=16, heads=(4, 2))
    case.k_cache, case.v_cache = case.k_cache.bfloat16(), case.v_cache.bfloat16()
    assert torch.allclose(extend(ours, case), extend(upstream, case), atol=5e-6)


def test_install_replaces_torch_native(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = registry.ATTENTION_BACKENDS["torch_native"]
    monkeypatch.setitem(registry.ATTENTION_BACKENDS, "torch_native", original)
    for _ in range(2):
        hooks.install_attention()
        assert registry.ATTENTION_BACKENDS["torch_native"] is not original


def test_install_names_a_missing_registration(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ATTENTION_BACKENDS", {})
    with pytest.raises(RuntimeError, match="torch_native"):
        hooks.install_attention()


def whole_and_parts(total: int, cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(total)
    query, key, value = (torch.randn((total, h, DIM), generator=rng) for h in (4, 2, 2))
    edges = sorted({0, *cuts, total})
    whole = attention.attend(query, key, value, scale=0.2)
    parts = [
        attention.attend(query[a:b], key[:b], value[:b], scale=0.2)
        for a, b in itertools.pairwise(edges)
    ]
    return whole, torch.cat(parts)


@given(st.integers(2, 200), st.lists(st.integers(1, 199), max_size=6))
@settings(max_examples=40, deadline=None)
def test_chunks_equal_the_whole_prompt(total: int, cuts: list[int]) -> None:
    whole, parts = whole_and_parts(total, [c for c in cuts if c < total])
    assert (whole - parts).abs().max() <= 2e-6


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([1, 4, 32]))
def test_blocks_cover_the_new_positions_on_an_absolute_grid(
    prefix: int, new: int, q_heads: int
) -> None:
    blocks = attention._blocks(prefix, prefix + new, q_heads)
    assert [p for a, b in blocks for p in range(a, b)] == list(range(prefix, prefix + new))
    assert all(b % attention.BLOCK_TOKENS == 0 for _, b in blocks[:-1])


def test_long_contexts_get_smaller_blocks() -> None:
    blocks = attention._blocks(131_072, 131_072 + 512, 32)
    largest = max((b - a) * 32 * b for a, b in blocks)
    assert largest <= attention._BLOCK_SCORES


def test_shapes_that_do_not_fit_are_refused() -> None:
    key = torch.zeros((3, 2, 8))
    with pytest.raises(ValueError, match="does not fit"):
        attention.attend(torch.zeros((4, 2, 8)), key, key, scale=1.0)
    with pytest.raises(ValueError, match="does not fit"):
        attention.attend(torch.zeros((1, 3, 8)), key, key, scale=1.0)
