"""Write the test model: a small deterministic Qwen3 checkpoint that looks at every KV page.

    python -m dualpath_sglang.testmodel --out DIR [--layers 4 --hidden 128 ...]

What it is for: on a 1k-token prompt, zeroing, overwriting or exchanging the keys *or* the values
of any one page of 16 tokens changes the next 16 greedy tokens, while chunking, batching and
caching do not: in float32 the smallest top-2 logit gap of the default model is over 100 times
their largest difference. `testmodel_weights` says how. Limits worth knowing:

* The smallest gap over N tokens shrinks like 1/N, whatever the seed. The default seed keeps the
  factor of 100 over the prompts tested (300 over 448 tokens); another seed or size must be
  measured. A factor of 1, where a token could differ, is a matter of 10^5 tokens.

* Attention is a sum over a set. Keys carry their position (RoPE), so exchanging two pages with
  *both* keys and values changes nothing, here or in any model; exchange one of the two, or
  overwrite a page with a copy of another.
* It never ends a turn by itself: the end tokens have the lowest logits. Set the output length.
* bfloat16 weights are for speed tests; equality tests need float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.testmodel_tokenizer import special_id, word_ids, write_tokenizer
from dualpath_sglang.testmodel_weights import Shape, build

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIN_BITS = 4


@dataclass(frozen=True)
class ModelSpec:
    """What is written. `ConfigError` names the field that does not fit."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 4096
    dtype: str = "float32"
    context: int = 32768
    seed: int = 8
    """Of the first 16, the one with the widest gap over 9 prompts x 64 tokens."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1: {getattr(self, name)}", field=name)
        if self.dtype not in DTYPE_BYTES:
            known = ", ".join(DTYPE_BYTES)
            raise ConfigError(f"dtype must be one of {known}: {self.dtype!r}", field="dtype")
        if self.layers < 2:
            raise ConfigError(
                "layers must be at least 2: later KV depends on layer 0", field="layers"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads must be a multiple of kv_heads: {self.heads} and {self.kv_heads}",
                field="heads",
            )
        if self.head_dim % 2 or self.head_dim < 16:
            raise ConfigError(
                f"head_dim must be even and at least 16: {self.head_dim}", field="head_dim"
            )
        if self.bits < MIN_BITS:
            raise ConfigError(
                f"hidden is too small for {self.layers} layers: "
                f"{self.hidden}, needs about {2 * (MIN_BITS * (self.layers + 1) + 1)}",
                field="hidden",
            )
        if len(word_ids(self.vocab)) < 2**self.bits:
            least = word_ids(self.vocab).start + 2**self.bits + 3
            raise ConfigError(f"vocab must be at least {least}: {self.vocab}", field="vocab")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be between 0 and 2^63 - 1: {self.seed}", field="seed")

    @property
    def bits(self) -> int:
        """Width of the hash; the model generates from 2^bits words."""
        return self.shape.bits

    @property
    def shape(self) -> Shape:
        return Shape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab,
        )


def write_model(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Write the checkpoint into `folder` (made if missing); equal specs give equal bytes.

    Returns:
        What was written: the fields of `spec`, `kv_bytes_per_token`, `parameters`, `bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = build(spec.shape, _candidates(spec), spec.seed)
    dtype = getattr(torch, spec.dtype)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in sorted(tensors.items())}
    weights = folder / "model.safetensors"
    save_file(stored, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library writes owner-only; engines may run as another user
    _write_json(folder / "config.json", _config(spec))
    _write_json(folder / "generation_config.json", {"do_sample": False, **_special_ids(spec.vocab)})
    write_tokenizer(folder, vocab=spec.vocab, context=spec.context)
    return asdict(spec) | {
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "parameters": sum(tensor.numel() for tensor in stored.values()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _candidates(spec: ModelSpec) -> torch.Tensor:
    """[2^bits] different word ids, spread over the vocabulary by the seed."""
    rng = torch.Generator().manual_seed(spec.seed + 1)
    words = word_ids(spec.vocab)
    return torch.randperm(len(words), generator=rng)[: 2**spec.bits] + words.start


def _special_ids(vocab: int) -> dict[str, Any]:
    end, pad = special_id(vocab, "<|im_end|>"), special_id(vocab, "<|endoftext|>")
    return {"eos_token_id": [end, pad], "pad_token_id": pad}


def _config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": special_id(spec.vocab, "<|im_end|>"),
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": spec.shape.intermediate,
        "max_position_embeddings": spec.context,
        "max_window_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "pad_token_id": special_id(spec.vocab, "<|endoftext|>"),
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": spec.dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": spec.vocab,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fit_kv_bytes(
    wanted: int, *, layers: int, head_dim: int, dtype: str, heads: int | None
) -> tuple[int, int]:
    """(heads, kv_heads) for which a token's KV takes `wanted` bytes.

    `heads` is kept when given, else two per KV head.
    """
    one_head = 2 * layers * head_dim * DTYPE_BYTES.get(dtype, 4)
    if wanted < 1 or wanted % one_head:
        raise ConfigError(
            f"kv-bytes-per-token must be a multiple of {one_head} (2 x {layers} layers x head-dim "
            f"{head_dim} x {dtype}): {wanted}; change layers, head-dim or dtype",
            field="kv_bytes_per_token",
        )
    kv_heads = wanted // one_head
    return (2 * kv_heads if heads is None else heads), kv_heads


def _parser() -> argparse.ArgumentParser:
    default = ModelSpec()
    parser = argparse.ArgumentParser(
        prog="dualpath make-model",
        description="Write a small deterministic Qwen3 checkpoint that looks at every KV page.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for name in ("layers", "hidden", "head_dim", "vocab", "context", "seed"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"{value}")
    parser.add_argument("--heads", type=int, help=f"{default.heads}")
    parser.add_argument("--kv-heads", type=int, help=f"{default.kv_heads}")
    parser.add_argument("--dtype", default=default.dtype, help=", ".join(DTYPE_BYTES))
    parser.add_argument(
        "--kv-bytes-per-token", type=int, help="chooses kv-heads instead; all layers together"
    )
    return parser


def _spec(args: argparse.Namespace) -> ModelSpec:
    heads, kv_heads = args.heads, args.kv_heads
    if args.kv_bytes_per_token is not None:
        if kv_heads is not None:
            raise ConfigError(
                "give kv-heads or kv-bytes-per-token, not both", field="kv_bytes_per_token"
            )
        heads, kv_heads = fit_kv_bytes(
            args.kv_bytes_per_token,
            layers=args.layers,
            head_dim=args.head_dim,
            dtype=args.dtype,
            heads=heads,
        )
    return ModelSpec(
        layers=args.layers,
        hidden=args.hidden,
        heads=ModelSpec.heads if heads is None else heads,
        kv_heads=ModelSpec.kv_heads if kv_heads is None else kv_heads,
        head_dim=args.head_dim,
        vocab=args.vocab,
        dtype=args.dtype,
        context=args.context,
        seed=args.seed,
    )


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        written = write_model(_spec(args), args.out)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
