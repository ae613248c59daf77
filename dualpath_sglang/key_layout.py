"""How the live Mooncake store of this engine spells its objects, asked of its own code.

SGLang builds keys in private methods of `MooncakeStore` (`_tag_keys`,
`_get_mha_buffer_meta`, `_get_mla_buffer_meta`), and other versions build them otherwise. So the
methods themselves are run on a made-up page hash, once per rank, and what stands around the hash
is what the router is told.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.contract.pages import KeyLayout
from dualpath_sglang.sglang_types import MooncakeStore

_HASH = "0" * 64


def key_layout_of(store: MooncakeStore) -> KeyLayout:
    """`store`: SGLang's `MooncakeStore` after `register_mem_pool_host`.

    Raises StartupError where pages have several shapes of objects (heads split for unequal
    tensor parallelism, pipeline parallelism) or where this SGLang is not understood.
    """
    try:
        refused = _refused(store)
        if refused:
            raise StartupError(f"DualPath: the store's objects cannot be planned for: {refused}")
        tp_size = int(store.storage_config.tp_size)
        ranks = (0,) if store.is_mla_backend else range(tp_size)
        keys = [key for rank in ranks for key in _keys_of_rank(store, rank)]
        prefix, suffixes = _around_hash(keys)
        page_size = int(store.mem_pool_host.page_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise StartupError(
            "DualPath: this version of SGLang's MooncakeStore spells its keys in an unknown way "
            f"({type(error).__name__}: {error})"
        ) from error
    return KeyLayout(prefix, suffixes, page_size, tp_size)


def _refused(store: MooncakeStore) -> str:
    if store.should_split_heads:
        return "heads are split over several objects (tp_lcm_size)"
    if store.enable_pp:
        return "pipeline parallelism"
    if store.dcp_size > 1:
        return "decode context parallelism"
    if not store.is_mla_backend and store.mha_suffix != str(store.local_rank):
        return f"the suffix {store.mha_suffix!r} of rank {store.local_rank} is not its number"
    return ""


def _keys_of_rank(store: MooncakeStore, rank: int) -> list[str]:
    """The objects of one page as rank `rank` spells them, by the store's own methods."""
    kind = type(store)
    objects = 1 if store.is_mla_backend else 2
    made_up = SimpleNamespace(
        mha_suffix=str(rank),
        mla_suffix=store.mla_suffix,
        mem_pool_host=SimpleNamespace(
            get_page_buffer_meta=lambda _: ([0] * objects, [0] * objects)
        ),
        _pack_multi_buffer_meta=kind._pack_multi_buffer_meta,
    )
    spell = kind._get_mla_buffer_meta if store.is_mla_backend else kind._get_mha_buffer_meta
    keys, _, _ = spell(cast("MooncakeStore", made_up), store._tag_keys([_HASH]), None)
    return [str(key) for key in keys]


def _around_hash(keys: list[str]) -> tuple[str, tuple[str, ...]]:
    """Raises ValueError unless all keys have one prefix, then the hash, then their own suffix."""
    parts = [key.split(_HASH) for key in keys]
    prefixes = {part[0] for part in parts}
    suffixes = tuple(part[1] for part in parts if len(part) == 2)
    if len(prefixes) != 1 or len(set(suffixes)) != len(keys):
        raise ValueError(f"keys {keys}")
    return prefixes.pop(), suffixes
