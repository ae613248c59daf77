"""Everything that a rig run can be told, with its default."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from dualpath_sglang.contract.errors import ConfigError


@dataclass(frozen=True)
class ModelSize:
    """Of the test model. Many query heads on one KV head: much to compute per byte of KV, as in
    large models, so that loading a context is faster than computing it again."""

    layers: int = 4
    hidden: int = 128
    heads: int = 16
    kv_heads: int = 1
    head_dim: int = 64

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, float32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4


LEAST_TOKENS = 12_288


@dataclass(frozen=True)
class Pools:
    """Tokens of KV of one engine, on the device and in host memory."""

    tokens: int
    host_tokens: int

    @property
    def ratio(self) -> float:
        return self.host_tokens / self.tokens

    def shared(self, engines: int) -> Pools:
        """Of each of several engines that have as much host memory together as one alone, so that
        caches stay smaller than the working set. A device pool has room for two prompts."""
        tokens = max(self.tokens // engines, LEAST_TOKENS)
        return Pools(min(self.tokens, tokens), self.host_tokens // engines)


@dataclass(frozen=True)
class RigConfig:
    """Units: tokens, bits per second, seconds, bytes.

    `generate`, `scale`, `seed`: the paper's sessions, made smaller. Each measured session starts
    where its context is about `context` tokens and goes on for `turns` turns.
    `prefill_pools`, `decode_pools`: of a lone engine; several share (`Pools.shared`).
    `isolated_nic_bits_per_s`: the rate for lone requests, where nothing overlaps: slow enough for
    what is no load to be a small part of the time to the first token.
    `max_inflight`: turns on the engines at a time, the others wait in the router. SGLang declines
    to prefetch, and computes instead, once prefetches hold half of the host pool; so that many
    prompts must fit into that half.
    """

    nic_bits_per_s: int = 50_000_000
    isolated_nic_bits_per_s: int = 16_000_000
    sessions: int = 20
    turns: int = 3
    max_inflight: int = 6
    context: int = 4_000
    generate: str = "64k"
    scale: float = 0.12
    seed: int = 0
    page_size: int = 16
    prefetch_policy: Literal["wait_complete", "timeout"] = "wait_complete"
    model: ModelSize = field(default_factory=ModelSize)
    prefill_pools: Pools = Pools(8_192, 49_152)
    decode_pools: Pools = Pools(20_480, 49_152)
    cpu_threads: int = 1
    segment_bytes: int = 6 * 1024**3
    settle_s: float = 4.0
    turn_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and f.name != "seed" and value <= 0:
                raise ConfigError(f"{f.name} must be above 0, not {value}", field=f.name)

    def inflight(self, prefill_engines: int) -> int:
        """For so many prefill engines: they share host memory, and turns do not end in the order
        that they were placed in, so that one engine has at times more than its part."""
        spare = prefill_engines if prefill_engines > 1 else 0
        return max(prefill_engines, self.max_inflight - spare)

    @property
    def digest(self) -> str:
        """Runs with another digest are not comparable."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
