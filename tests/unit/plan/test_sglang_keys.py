"""Contract with the installed SGLang: its page hashes, object keys and kv_hints are ours."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualpath_sglang.contract.engine_info import INFO_KEY, EngineInfo, from_server_info
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.contract.pages import KeyLayout, PageHasher, page_hashes
from dualpath_sglang.contract.plan import parse_kv_hints
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.key_layout import key_layout_of

GOLDEN = Path(__file__).parents[2] / "golden" / "plan"
TOKENS = [(i * 7919 + i * i) % 151_000 for i in range(333)]
HASH = "ab" * 32


@pytest.fixture(scope="module")
def mem_cache() -> Any:
    """SGLang's modules that name pages."""
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.managers import io_struct, kv_hints
        from sglang.srt.mem_cache import utils
        from sglang.srt.mem_cache.storage.mooncake_store import mooncake_store
    return SimpleNamespace(
        utils=utils, store=mooncake_store, kv_hints=kv_hints, io_struct=io_struct
    )


def make_store(
    mem_cache: Any, *, tp_size: int = 1, rank: int = 0, mla: bool = False, **extra: Any
) -> Any:
    """The real class with the attributes that its constructor derives from the configuration."""
    store = mem_cache.store.MooncakeStore.__new__(mem_cache.store.MooncakeStore)
    page = [0] if mla else [0, 0]
    pool = SimpleNamespace(
        page_size=16,
        kv_buffer=object(),
        get_page_buffer_meta=lambda indices: (
            page * (len(indices) // 16),
            page * (len(indices) // 16),
        ),
    )
    values = {
        "config_prefix": "tag_org-model",
        "mha_suffix": str(rank),
        "mla_suffix": "",
        "local_rank": rank,
        "is_mla_backend": mla,
        "should_split_heads": False,
        "enable_pp": False,
        "dcp_size": 1,
        "storage_config": SimpleNamespace(tp_size=tp_size),
        "mem_pool_host": pool,
    } | extra
    store.__dict__.update(values)
    return store


def keys_of(store: Any, page_hash: str) -> list[str]:
    """What the store's own read and write paths would ask for."""
    keys, _, _ = store._batch_preprocess(store._tag_keys([page_hash]), list(range(16)))
    return list(keys)


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_hashes_are_sglangs(mem_cache: Any, page_size: int) -> None:
    class Key(list[int]):
        pass

    full = len(TOKENS) - len(TOKENS) % page_size
    key = Key(TOKENS[:full])
    key.extra_key = key.cache_salt = None  # type: ignore[attr-defined]
    theirs = mem_cache.utils.get_storage_hash_str(key, None, page_size)
    ours = page_hashes(TOKENS, page_size)
    assert list(ours) == list(theirs)


def test_hashes_go_on_from_sglangs_last_hash(mem_cache: Any) -> None:
    hasher = PageHasher(16)
    hasher.extend(TOKENS[:160])
    hasher.extend(TOKENS[:320])
    rest = mem_cache.utils.get_hash_str(TOKENS[160:320], hasher.hashes()[9], 16)
    assert list(hasher.hashes(10)) == list(rest)


@pytest.mark.parametrize("prefix", ["tag_org-model", None])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_layout_covers_every_rank_k_and_v(mem_cache: Any, tp_size: int, prefix: str | None) -> None:
    stores = [
        make_store(mem_cache, tp_size=tp_size, rank=rank, config_prefix=prefix)
        for rank in range(tp_size)
    ]
    layouts = {key_layout_of(store) for store in stores}
    assert len(layouts) == 1, "every rank publishes the same layout"
    (layout,) = layouts
    assert layout.object_keys(HASH) == tuple(key for s in stores for key in keys_of(s, HASH))
    assert len(layout.suffixes) == 2 * tp_size
    assert (layout.page_size, layout.tp_size) == (16, tp_size)


def test_layout_of_mla_has_one_object_per_page(mem_cache: Any) -> None:
    store = make_store(mem_cache, tp_size=4, rank=3, mla=True)
    layout = key_layout_of(store)
    assert layout.object_keys(HASH) == tuple(keys_of(store, HASH))
    assert layout == KeyLayout("tag_org-model_", ("__k",), 16, 4)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"should_split_heads": True}, "heads are split"),
        ({"enable_pp": True}, "pipeline"),
        ({"dcp_size": 2}, "decode context"),
        ({"mha_suffix": "7"}, "not its number"),
        ({"mem_pool_host": None}, "unknown way"),
        ({"_tag_keys": lambda keys: ["no hash in here"]}, "unknown way"),
    ],
)
def test_layouts_that_cannot_be_planned_for(
    mem_cache: Any, extra: dict[str, Any], says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        key_layout_of(make_store(mem_cache, **extra))


def test_engine_info_travels_in_the_internal_state(mem_cache: Any) -> None:
    """A hook after `Scheduler.get_internal_state` may add a key: the message is sent as it is."""
    layout = key_layout_of(make_store(mem_cache, tp_size=2))
    info = EngineInfo("decode", "0.5.23", 16, 1, "f", "n", ("h:1", "h:2"), ("hook",), layout)
    message = mem_cache.io_struct.GetInternalStateReqOutput(internal_state={"page_size": 16})
    message.internal_state[INFO_KEY] = info.to_tree()
    encoded = mem_cache.io_struct.msgpack_encode(message)
    received = mem_cache.io_struct.msgpack_decode(encoded)
    answer = json.loads(json.dumps({"internal_states": [received.internal_state]}))
    assert from_server_info(answer) == info


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_sglang_takes_the_envelopes_and_we_read_its_structs(mem_cache: Any, path: Path) -> None:
    case = json.loads(path.read_text())
    decode = mem_cache.kv_hints.decode_kv_hints_envelope
    if not case["sglang_accepts"]:
        with pytest.raises(ValueError, match="Malformed kv_hints"):
            decode(case["hints"])
        return
    counters: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    plan = parse_kv_hints(decode(case["hints"]), counters)
    assert plan == parse_kv_hints(case["hints"], plain)
    assert counters == plain
