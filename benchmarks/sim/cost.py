"""How long engines compute: FLOPs and bytes over rates. Pure."""

from __future__ import annotations

from benchmarks.sim.constants import Constants
from benchmarks.sim.models import Model


class PrefillCost:
    """Seconds of one GPU's part of a forward, all layers."""

    def __init__(self, model: Model, constants: Constants, group_gpus: int) -> None:
        slow = constants.prefill_slowdown
        gemm = constants.gemm_flops_per_s if model.fp8 else constants.bf16_gemm_flops_per_s
        attention = (
            constants.mla_flops_per_s if model.topk else constants.dense_attention_flops_per_s
        )
        self._context_s = slow * model.attention_flops(1.0) / attention
        """Attention of one new token over one token of context it attends to."""
        self._topk = float(model.topk)
        self._index_s = slow * model.index_flops(1.0) / constants.index_flops_per_s
        self.own_s = slow * 2 * model.own_params / gemm
        """Of one token, what its own GPU does beside attention."""
        self.expert_s = slow * 2 * model.expert_params / gemm
        """Of one token, what experts anywhere in the group do."""
        bandwidth = constants.hbm_bytes_per_s * constants.hbm_efficiency
        batches = constants.micro_batches if model.expert_params else 1
        self._expert_floor_s = batches * model.expert_bytes / group_gpus / bandwidth
        self._own_floor_s = batches * model.replicated_bytes / bandwidth
        self._fixed_s = model.layers * constants.layer_overhead_s
        self._gpus = group_gpus

    def attention_s(self, cached: float, new: float) -> float:
        """Of `new` tokens after `cached` ones. Attention to the new ones is causal."""
        middle = cached + 0.5 * new
        seen = self._topk if self._topk and middle > self._topk else middle
        return new * (self._context_s * seen + self._index_s * middle)

    def fits(self, cached: float, new: int, seconds: float) -> int:
        """The most of `new` tokens whose attention takes at most `seconds`; may be 0."""
        low, high = 0, new
        while low < high:
            middle = (low + high + 1) // 2
            if self.attention_s(cached, middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def forward_s(self, attention_s: float, own_tokens: float, all_tokens: float) -> float:
        """Of a group: the longest attention and the most tokens of one GPU, tokens of all."""
        own = max(own_tokens * self.own_s, self._own_floor_s)
        experts = max(all_tokens / self._gpus * self.expert_s, self._expert_floor_s)
        return self._fixed_s + attention_s + own + experts


class DecodeCost:
    """Seconds of one decode step of a group, linear in its fullest GPU."""

    def __init__(self, model: Model, constants: Constants, group_gpus: int) -> None:
        slow = constants.decode_slowdown
        bandwidth = constants.hbm_bytes_per_s * constants.hbm_efficiency
        weights = model.replicated_bytes + model.expert_bytes / group_gpus
        batches = constants.micro_batches if model.expert_params else 1
        self.base_s = slow * (
            batches * weights / bandwidth + model.layers * constants.decode_layer_s
        )
        self.request_s = slow * model.layers * constants.decode_token_layer_s
        """More for each request of the fullest GPU: communication, kernels."""
        self.topk = model.topk
        self._kv_s = slow * model.kv_bytes * model.layers / bandwidth
        self._index_s = slow * model.index_bytes * model.layers / bandwidth

    def reading_s(self, context: float) -> float:
        """More for one request with `context` tokens of KV."""
        seen = min(context, self.topk) if self.topk else context
        return self.request_s + self._kv_s * seen + self._index_s * context


def kv_room(model: Model, constants: Constants, group_gpus: int) -> float:
    """Tokens whose KV fits one GPU of a group of `group_gpus`; 0 or less: none does."""
    weights = model.replicated_bytes + model.expert_bytes / group_gpus
    usable = constants.hbm_bytes * constants.hbm_usable_share
    return (usable - weights - constants.hbm_activation_bytes) / model.token_bytes
