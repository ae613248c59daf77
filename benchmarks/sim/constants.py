"""Every number that the simulator takes from somewhere, each with where it is from.

A source is one of `paper` (arXiv 2602.21548, by section), `model card`, `data sheet`, `published`
(somebody's measurement), `rig` (our profile of the two-network rig), `assumed` or `fitted`.
`python -m benchmarks.sim constants` prints the table; a sensitivity run multiplies one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal

from dualpath_sglang.contract.errors import ConfigError

Source = Literal["paper", "model card", "data sheet", "published", "rig", "assumed", "fitted"]


def _number(value: float, unit: str, source: Source, where: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source, "where": where})


@dataclass(frozen=True)
class Constants:
    """Rates, sizes and thresholds of a simulated deployment. Models have their own tables."""

    # Nodes and networks
    gpus_per_node: float = _number(8, "GPUs", "paper", "2.3: 8 Hopper GPUs a node")
    snic_bytes_per_s: float = _number(
        50e9, "bytes/s", "paper", "2.3, 7.2: one 400 Gbit/s storage NIC a node; 3FS saturates it"
    )
    cnic_bytes_per_s: float = _number(
        50e9, "bytes/s", "paper", "2.3: one 400 Gbit/s compute NIC a GPU, each direction"
    )
    dram_bytes_per_s: float = _number(500e9, "bytes/s", "paper", "4.2: M, both directions summed")
    store_bytes_per_s: float = _number(
        0, "bytes/s", "assumed", "0: the store never limits (cluster size not published)"
    )
    dram_buffer_bytes: float = _number(
        80e9, "bytes", "paper", "A.4: host DRAM given to DualPath on a node, DeepSeek models"
    )
    page_tokens: float = _number(64, "tokens", "paper", "4.1, A.5: block size, given as an example")
    # GPUs
    hbm_bytes: float = _number(80e9, "bytes", "data sheet", "H100 and H800 SXM; the SKU is unnamed")
    hbm_usable_share: float = _number(0.9, "", "assumed", "usual static share; rest is runtime")
    hbm_activation_bytes: float = _number(4e9, "bytes", "assumed", "activations and comm buffers")
    hbm_bytes_per_s: float = _number(3.35e12, "bytes/s", "data sheet", "H100 and H800 SXM")
    hbm_efficiency: float = _number(0.8, "", "assumed", "large reads; FlashMLA reports 3000 GB/s")
    # Prefill
    gemm_flops_per_s: float = _number(
        667e12,
        "FLOP/s",
        "published",
        "DeepSeek's prefill profile: 62,713 tokens/s a node at 4K prompts, less its attention",
    )
    mla_flops_per_s: float = _number(
        640e12, "FLOP/s", "published", "FlashMLA, sparse prefill on H800, up to"
    )
    dense_attention_flops_per_s: float = _number(
        600e12, "FLOP/s", "published", "FlashAttention 3 forward, BF16, H100"
    )
    index_flops_per_s: float = _number(
        640e12, "FLOP/s", "assumed", "indexer logits; as good as the sparse attention"
    )
    bf16_gemm_flops_per_s: float = _number(
        600e12, "FLOP/s", "published", "cuBLAS BF16 on H100, large shapes"
    )
    prefill_slowdown: float = _number(
        1.0, "", "assumed", "time of a real forward over that of its kernels"
    )
    micro_batches: float = _number(
        2,
        "",
        "published",
        "DeepSeek's inference system overview: two micro-batches hide communication (MoE)",
    )
    layer_overhead_s: float = _number(
        250e-6, "s", "published", "DeepEP: dispatch and combine of a small batch, per layer"
    )
    # Decode
    decode_layer_s: float = _number(50e-6, "s", "assumed", "launches and routing of one layer")
    decode_token_layer_s: float = _number(
        1e-6, "s", "assumed", "kernels of one more request in one layer, attention left out"
    )
    decode_slowdown: float = _number(
        1.0, "", "assumed", "time of a real step over that of its kernels"
    )
    # Scheduling
    fetch_s: float = _number(
        1.0, "s", "assumed", "6.1: groups pull work `regularly`; a report a second, as at scale"
    )
    quota_s: float = _number(0.3, "s", "paper", "A.4: compute quota; unit not made explicit")
    alpha_s: float = _number(3.0, "s", "paper", "A.4: short reading queue")
    prompt_tokens_per_s: float = _number(
        156e3, "tokens/s", "paper", "Fig. 15 read off: 6e7 prompt tokens/s over 384 GPUs; for beta"
    )
    beta_s: float = _number(5.0, "s", "paper", "A.4: unfinished tokens of one GPU")
    max_forward_tokens: float = _number(
        16384, "tokens", "published", "DeepSeek's prefill profile: 16K tokens a GPU and forward"
    )


def rows(constants: Constants) -> Iterator[tuple[str, float, str, str, str]]:
    """(name, value, unit, source, where) of every constant; a changed one is `fitted`."""
    for item in fields(constants):
        value = getattr(constants, item.name)
        source = item.metadata["source"] if value == item.default else "fitted"
        yield item.name, value, item.metadata["unit"], source, item.metadata["where"]


def with_changes(constants: Constants, changes: dict[str, float]) -> Constants:
    """Raises ConfigError for a name that is not in the table and for a value that cannot be."""
    known: dict[str, Field[Any]] = {item.name: item for item in fields(constants)}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"no constant {name!r}; known: {', '.join(known)}", field=name)
        if not value > 0 and not (value == 0 and name == "store_bytes_per_s"):
            raise ConfigError(f"{name} must be above 0, not {value}", field=name)
    return replace(constants, **changes)
