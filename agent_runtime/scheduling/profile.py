"""What one engine and its links can do: the numbers that placement and split are computed with.

`dualpath profile` measures them on a running stack; without its file the defaults below hold until
engines report rates of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

ALPHA_S = 3.0
"""A storage reading queue is short when it is read within this (paper, A.4)."""
BETA_S = 5.0
"""An engine has enough when finishing it all takes this long (paper, A.4)."""
Z_FACTOR = 1.05
"""How far above its group's mean a decode engine may be filled (paper, 6.1)."""

KV_BYTES_PER_TOKEN = 65_536
"""Of an engine that does not say: 32 layers, 4 heads of K and V with 128 values of 2 bytes."""


@dataclass(frozen=True)
class Profile:
    """Of one engine (one data-parallel rank) and its links. All rates are above 0.

    beta_tokens: prompt tokens, cached and new, that a prefill engine finishes in `BETA_S` when
    all KV is local. The default is what the paper's Fig. 15 comes to for one GPU.
    alpha_tokens: tokens that one node's storage NIC reads in `ALPHA_S`; null: by its rate.
    store, peer: bytes per second that one engine gets from the store and that P pulls from D.
    compute_tokens_per_s: new tokens that a prefill engine computes. pull_fixed_s: of a pull of
    any size.
    """

    beta_tokens: float = 780_000.0
    alpha_tokens: float | None = None
    store_bytes_per_s: float = 3e9
    peer_bytes_per_s: float = 10e9
    compute_tokens_per_s: float = 10_000.0
    pull_fixed_s: float = 0.002


DEFAULT_PROFILE = Profile()
