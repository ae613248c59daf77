"""Weights of the test model: constructed, not trained, so that every KV page matters.

A random-weight model barely looks at its context. This one hashes it. The residual stream is
divided into named parts:

    constant   a fixed value, so that RMSNorm scales hardly move and biases exist
    token      a random +-1 code of the current token
    signed     the token code with signs set by bits of the context (from layer 0 on)
    bits       B values +-1, the running hash
    mix[l]     up to B values per layer: what layer l's attention read

Attention (scores of standard deviation `SHARPNESS`, random queries and keys under RoPE) reads a
zero-mean random value from every position, so each page holds about 1/pages of the variance of
`mix[l]`. The gated MLP takes the sign of each value and multiplies it into `bits`:
`silu(g + a) - silu(g - a)` is a step from 0 to 2a. The head maps the 2^B sign patterns to 2^B
tokens. A changed page moves every value by >= 1/8 of its spread and so flips signs; rounding
moves it by about 1e-6 of it and changes nothing unless a value is that close to zero, and after the
step the logits are +-1 sums with a wide gap.

From layer 1 on keys and values also read `signed`, so KV depends on the text before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

SHARPNESS = 1.1
"""Standard deviation of attention scores: high enough that keys matter, low enough that no
page is out of sight."""
GAIN = 4096.0
"""Of the step: a value's spread at 32k tokens of context is still many steps wide."""
SOFT_GAIN = 48.0
"""Of the step that makes `signed`: low, because every position's rounding enters later keys and
values through it."""
HISTORY = 0.5
"""Weight in later keys and values of `signed`, which depends on the text before, against the
token itself, which makes every position count the same."""
STEP = 4.0
"""Half width `a` of the step."""
OPEN = 16.0
"""Gate input for which silu is the identity in float32: makes a linear unit."""
LOGIT = 2.0
"""Logit change per bit: the top-2 gap is normally twice this."""
MAX_BITS = 10
READS = 40
"""Values compared with zero per token, over all layers. More find a changed page sooner, and
are more often near zero by chance."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; `bits` is the width of the hash."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def intermediate(self) -> int:
        return 2 * self.hidden

    @property
    def code(self) -> int:
        """Width of the token code, and of its signed copy."""
        return self.hidden // 4

    @property
    def bits(self) -> int:
        room = self.hidden - 1 - 2 * self.code
        return min(MAX_BITS, room // (self.layers + 1))

    @property
    def reads(self) -> int:
        """Width of each layer's `mix`."""
        return min(self.bits, -(-READS // self.layers))

    @property
    def constant(self) -> int:
        return 0

    @property
    def token(self) -> slice:
        return slice(1, 1 + self.code)

    @property
    def signed(self) -> slice:
        return slice(1 + self.code, 1 + 2 * self.code)

    @property
    def hash(self) -> slice:
        start = 1 + 2 * self.code
        return slice(start, start + self.bits)

    def mix(self, layer: int) -> slice:
        start = 1 + 2 * self.code + self.bits + layer * self.reads
        return slice(start, start + self.reads)

    def targets(self, layer: int) -> list[int]:
        """Which bit each value of `mix[layer]` is multiplied into: round robin over layers."""
        return [(layer * self.reads + i) % self.bits for i in range(self.reads)]

    @property
    def constant_value(self) -> float:
        """Large against all other parts together: 16 x hidden against about 0.6 x hidden."""
        return 4.0 * math.sqrt(self.hidden)


def build(shape: Shape, candidates: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The checkpoint in float32, by Hugging Face Qwen3 parameter name.

    Args:
        shape: sizes.
        candidates: [2^bits] token ids the model may generate.
        seed: decides every random sign; equal seeds give equal bytes on every machine, because
            only random bits are drawn.
    """
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        "model.embed_tokens.weight": _embedding(shape, rng),
        "model.norm.weight": _norm(shape),
        "lm_head.weight": _head(shape, candidates),
    }
    for layer in range(shape.layers):
        for name, tensor in (_attention(shape, layer, rng) | _mlp(shape, layer)).items():
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor
    return tensors


def _signs(rng: torch.Generator, *size: int) -> torch.Tensor:
    return torch.randint(0, 2, size, generator=rng).float() * 2 - 1


def _norm(shape: Shape) -> torch.Tensor:
    """Undoes the scale of RMSNorm, which the constant fixes: values come out as they are."""
    code_energy = shape.code * 2 + shape.bits
    mean_square = (shape.constant_value**2 + code_energy) / shape.hidden
    return torch.full((shape.hidden,), math.sqrt(mean_square))


def _embedding(shape: Shape, rng: torch.Generator) -> torch.Tensor:
    table = torch.zeros(shape.vocab, shape.hidden)
    table[:, shape.constant] = shape.constant_value
    table[:, shape.token] = _signs(rng, shape.vocab, shape.code)
    table[:, shape.hash] = _signs(rng, shape.vocab, shape.bits)
    return table


def _head(shape: Shape, candidates: torch.Tensor) -> torch.Tensor:
    """Candidate number i gets the bit pattern of i; all other tokens a low constant logit."""
    numbers = torch.arange(2**shape.bits)[:, None]
    patterns = (numbers >> torch.arange(shape.bits) & 1).float() * 2 - 1
    head = torch.zeros(shape.vocab, shape.hidden)
    head[:, shape.constant] = -(shape.bits + 2) * LOGIT / shape.constant_value
    head[candidates, shape.constant] = 0.0
    head[candidates, shape.hash] = patterns * LOGIT
    return head


def _attention(shape: Shape, layer: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Random reads; `mix[layer]` gets one value coordinate per bit, summed over the heads."""
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    query = torch.zeros(q_rows, shape.hidden)
    query[:, shape.token] = _signs(rng, q_rows, shape.code)
    key = torch.zeros(kv_rows, shape.hidden)
    key[:, shape.token] = _signs(rng, kv_rows, shape.code)
    value = torch.zeros(kv_rows, shape.hidden)
    value[:, shape.token] = _signs(rng, kv_rows, shape.code) / math.sqrt(shape.code)
    if layer > 0:
        for read in (key, value):
            read[:, shape.signed] = (
                HISTORY * read[:, shape.token] * _signs(rng, kv_rows, shape.code)
            )
    out = torch.zeros(shape.hidden, q_rows)
    mix = shape.mix(layer)
    for read in range(shape.reads):
        columns = torch.arange(shape.heads) * shape.head_dim + read
        out[mix.start + read, columns] = _signs(rng, shape.heads) / math.sqrt(shape.heads)
    return {
        "input_layernorm": _norm(shape),
        "self_attn.q_proj": query,
        "self_attn.k_proj": key,
        "self_attn.v_proj": value,
        "self_attn.o_proj": out,
        "self_attn.q_norm": torch.full((shape.head_dim,), SHARPNESS),
        "self_attn.k_norm": torch.ones(shape.head_dim),
    }


def _mlp(shape: Shape, layer: int) -> dict[str, torch.Tensor]:
    """bits *= sign(mix[layer]); in layer 0 also signed = token * sign(mix[0])."""
    gate = torch.zeros(shape.intermediate, shape.hidden)
    up = torch.zeros_like(gate)
    down = torch.zeros(shape.hidden, shape.intermediate)
    mix = shape.mix(layer)
    products = [
        (mix.start + i, shape.hash.start + bit, shape.hash.start + bit, GAIN, -1.0)
        for i, bit in enumerate(shape.targets(layer))
    ]
    if layer == 0:
        products += [
            (
                mix.start + j % shape.reads,
                shape.token.start + j,
                shape.signed.start + j,
                SOFT_GAIN,
                0.0,
            )
            for j in range(shape.code)
        ]
    bias = 1 / shape.constant_value
    for number, (sign_of, factor, target, gain, keep) in enumerate(products):
        low, high, linear = 3 * number, 3 * number + 1, 3 * number + 2
        gate[[low, high], sign_of] = gain
        gate[low, shape.constant] = STEP * bias
        gate[high, shape.constant] = -STEP * bias
        gate[linear, shape.constant] = OPEN * bias
        up[[low, high, linear], factor] = 1.0
        down[target, low] = 1 / STEP
        down[target, high] = -1 / STEP
        # centre the step, and take out what the target held
        down[target, linear] = (keep - 1.0) / OPEN
    return {
        "post_attention_layernorm": _norm(shape),
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": down,
    }
