"""A small random DeepSeek-V2 checkpoint: MLA, dense layers only, float32.

Attention is sharp (scores spread by `SHARPNESS`) and large beside the rest, so that the greedy
tokens depend on the content of the cached pages.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dualpath_sglang.testmodel_tokenizer import write_tokenizer

LAYERS, HIDDEN, HEADS, VOCAB, CONTEXT = 3, 128, 4, 4096, 8192
LATENT, NOPE, ROPE, VALUE, INNER = 64, 32, 16, 32, 256
SHARPNESS = 3.0
KV_BYTES = LAYERS * (LATENT + ROPE) * 4
"""Of one token: one latent and one rotary key, no K and V apart."""


def write_mla_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(3)

    def random(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn((rows, columns), generator=rng) * gain / columns**0.5

    tensors = {
        "model.embed_tokens.weight": torch.randn((VOCAB, HIDDEN), generator=rng),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": random(VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        attention = f"model.layers.{layer}.self_attn"
        mlp = f"model.layers.{layer}.mlp"
        tensors |= {
            f"model.layers.{layer}.input_layernorm.weight": torch.ones(HIDDEN),
            f"model.layers.{layer}.post_attention_layernorm.weight": torch.ones(HIDDEN),
            f"{attention}.q_proj.weight": random(HEADS * (NOPE + ROPE), HIDDEN, SHARPNESS),
            f"{attention}.kv_a_proj_with_mqa.weight": random(LATENT + ROPE, HIDDEN),
            f"{attention}.kv_a_layernorm.weight": torch.ones(LATENT),
            f"{attention}.kv_b_proj.weight": random(HEADS * (NOPE + VALUE), LATENT),
            f"{attention}.o_proj.weight": random(HIDDEN, HEADS * VALUE, 3.0),
            f"{mlp}.gate_proj.weight": random(INNER, HIDDEN),
            f"{mlp}.up_proj.weight": random(INNER, HIDDEN),
            f"{mlp}.down_proj.weight": random(HIDDEN, INNER),
        }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(_config(), indent=2), encoding="utf-8")
    write_tokenizer(folder, vocab=VOCAB, context=CONTEXT)
    return folder


def _config() -> dict[str, object]:
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "attention_bias": False,
        "first_k_dense_replace": LAYERS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "kv_lora_rank": LATENT,
        "max_position_embeddings": CONTEXT,
        "moe_intermediate_size": 64,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 2,
        "n_shared_experts": 1,
        "norm_topk_prob": False,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 1,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": None,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "type": "yarn",
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 2,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": CONTEXT // 2,
        },
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "float32",
        "v_head_dim": VALUE,
        "vocab_size": VOCAB,
    }
