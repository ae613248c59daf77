"""Models as a simulator sees them: bytes of KV, FLOPs and weights, from their cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dualpath_sglang.contract.errors import ConfigError


@dataclass(frozen=True)
class Model:
    """Sizes are per layer and token unless the name says otherwise; parameters are counts.

    `topk` 0: every query attends to its whole context. `index_heads` 0: no indexer.
    `own_params`: active parameters that every GPU computes for its own tokens; `expert_params`:
    active ones of routed experts, computed wherever the expert lives.
    `qk_dim`, `v_dim`: of one head as computed (MLA in its absorbed form: 576 and 512).
    `ep_nodes_*`: nodes of one group of engines that step together; 0: each GPU by itself.
    """

    name: str
    layers: int
    kv_bytes: float
    index_bytes: float
    heads: int
    qk_dim: int
    v_dim: int
    topk: int
    index_heads: int
    index_dim: int
    own_params: float
    expert_params: float
    replicated_bytes: float
    expert_bytes: float
    fp8: bool
    ep_nodes_prefill: int
    ep_nodes_decode: int
    max_context: int
    source: str

    @property
    def token_bytes(self) -> float:
        """KV and indexer cache of one token in all layers."""
        return (self.kv_bytes + self.index_bytes) * self.layers

    def attention_flops(self, context: float) -> float:
        """Of one new token over `context` tokens, all layers, indexer left out."""
        seen = min(context, self.topk) if self.topk else context
        return self.layers * 2.0 * seen * (self.qk_dim + self.v_dim) * self.heads

    def index_flops(self, context: float) -> float:
        return self.layers * 2.0 * self.index_heads * self.index_dim * context


DS_660B = Model(
    name="ds660b",
    layers=61,
    kv_bytes=656,
    index_bytes=132,
    heads=128,
    qk_dim=576,
    v_dim=512,
    topk=2048,
    index_heads=64,
    index_dim=128,
    own_params=16.6e9,
    expert_params=20.4e9,
    replicated_bytes=19e9,
    expert_bytes=654e9,
    fp8=True,
    ep_nodes_prefill=2,
    ep_nodes_decode=4,
    max_context=163_840,
    source="DeepSeek-V3.2 card: 37B of 671B active, FP8 KV of 656 + 132 bytes; EP16 and EP32 "
    "are assumed, from the default 2P4D",
)
DS_27B = Model(
    name="ds27b",
    layers=30,
    kv_bytes=1152,
    index_bytes=128,
    heads=32,
    qk_dim=576,
    v_dim=512,
    topk=1024,
    index_heads=32,
    index_dim=64,
    own_params=1.9e9,
    expert_params=2.05e9,
    replicated_bytes=4.5e9,
    expert_bytes=25e9,
    fp8=True,
    ep_nodes_prefill=1,
    ep_nodes_decode=1,
    max_context=163_840,
    source="paper A.2 (shape); BF16 KV and indexer keys assumed: the KV size is not published",
)
QWEN_32B = Model(
    name="qwen32b",
    layers=64,
    kv_bytes=4096,
    index_bytes=0,
    heads=40,
    qk_dim=128,
    v_dim=128,
    topk=0,
    index_heads=0,
    index_dim=0,
    own_params=32.5e9,
    expert_params=0,
    replicated_bytes=32.5e9,
    expert_bytes=0,
    fp8=True,
    ep_nodes_prefill=0,
    ep_nodes_decode=0,
    max_context=131_072,
    source="Qwen2.5-32B card: 64 layers, 8 KV heads of 128, BF16 KV; FP8 weights assumed, since "
    "BF16 weights leave one GPU no room for a 64K context",
)
MODELS: Mapping[str, Model] = {model.name: model for model in (DS_660B, DS_27B, QWEN_32B)}


def named(name: str) -> Model:
    """Raises ConfigError for a family that is not known."""
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}; known: {', '.join(MODELS)}", field="model")
    return MODELS[name]
