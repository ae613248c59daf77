"""The attention of `attention.py` as SGLang's backend. Importing this imports SGLang."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from dualpath_sglang.cpu.attention import attend_decode, attend_extend


class PrefixAttnBackend(TorchNativeAttnBackend):  # type: ignore[misc]
    """Cross attention, encoder lengths and sliding windows go to the parent unchanged."""

    def _run_sdpa_forward_extend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        if _unusual(encoder_lens, options):
            kept: torch.Tensor = super()._run_sdpa_forward_extend(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                extend_prefix_lens,
                extend_seq_lens,
                encoder_lens,
                **options,
            )
            return kept
        attend_extend(
            query,
            output,
            k_cache,
            v_cache,
            _slots(req_to_token, req_pool_indices, seq_lens),
            extend_seq_lens.tolist(),
            scale=_scale(query, options),
            causal=options.get("causal", False),
        )
        return output

    def _run_sdpa_forward_decode(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        if _unusual(encoder_lens, options):
            kept: torch.Tensor = super()._run_sdpa_forward_decode(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                encoder_lens,
                **options,
            )
            return kept
        slots = _slots(req_to_token, req_pool_indices, seq_lens)
        attend_decode(query, output, k_cache, v_cache, slots, scale=_scale(query, options))
        return output


def _unusual(encoder_lens: torch.Tensor | None, options: dict[str, Any]) -> bool:
    window = options.get("sliding_window_size")
    return (
        encoder_lens is not None
        or bool(options.get("is_cross_attn"))
        or (window is not None and window > -1)
    )


def _scale(query: torch.Tensor, options: dict[str, Any]) -> float:
    scaling = options.get("scaling")
    return float(query.shape[-1] ** -0.5 if scaling is None else scaling)


def _slots(
    req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor
) -> list[torch.Tensor]:
    pairs = zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)
    return [req_to_token[row, :length] for row, length in pairs]
