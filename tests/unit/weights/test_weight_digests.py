"""What the digests of weights see, and what they do not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_folders import bfloat16, change_byte, two_layers, write_model, write_safetensors

from dualpath_sglang.contract.errors import WeightsUnreadable
from dualpath_sglang.weights import remembered
from dualpath_sglang.weights import sampled as sampled_module
from dualpath_sglang.weights.files import weight_files
from dualpath_sglang.weights.full import full_digest
from dualpath_sglang.weights.regions import Region, outline
from dualpath_sglang.weights.remembered import Remembered
from dualpath_sglang.weights.sampled import BLOCK, places, sampled_digest


def sampled(path: Path, load_format: str = "auto") -> str:
    return sampled_digest(weight_files(str(path), load_format))


def full(path: Path, folder: Path) -> str:
    return full_digest(weight_files(str(path), "auto"), Remembered(folder))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered at once."""
    monkeypatch.setattr(remembered, "SETTLED_S", -1.0)


# --- sampled ------------------------------------------------------------------------------------


def test_the_same_weights_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    here = write_model(tmp_path / "here", two_layers())
    there = tmp_path / "deep" / "there"
    shutil.copytree(here, there)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(here / "model.safetensors")
    assert sampled(here) == sampled(there) == sampled(linked)


def test_another_seed_has_another_digest(tmp_path: Path) -> None:
    one = write_model(tmp_path / "1", two_layers(seed=8))
    two = write_model(tmp_path / "2", two_layers(seed=9))
    assert (one / "model.safetensors").stat().st_size == (two / "model.safetensors").stat().st_size
    assert sampled(one) != sampled(two)


@pytest.mark.parametrize("rate", [1e-3, 1e-6], ids=["training", "reinforcement"])
def test_each_of_ten_steps_of_an_optimizer_is_seen(tmp_path: Path, rate: float) -> None:
    """Adam moves every weight by about its rate; kept in float32, written in bfloat16."""
    rng = np.random.default_rng(1)
    values = two_layers()
    seen = {sampled(write_model(tmp_path / "0", values))}
    for step in range(1, 11):
        for value in values.values():
            value += rate * rng.choice([-1.0, 1.0], value.shape).astype(np.float32)
        seen.add(sampled(write_model(tmp_path / str(step), values)))
    assert len(seen) == 11


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "norm.weight"])
def test_a_step_of_one_tensor_is_seen(tmp_path: Path, name: str) -> None:
    values = two_layers()
    before = sampled(write_model(tmp_path / "0", values))
    rng = np.random.default_rng(2)
    hit = rng.random(values[name].shape) < 0.01
    values[name][hit] *= 1.01
    assert sampled(write_model(tmp_path / "1", values)) != before


def test_a_new_type_or_name_of_equal_bytes_is_seen(tmp_path: Path) -> None:
    arrays = {"a": bfloat16(np.ones((4, 4)))}
    write_safetensors(tmp_path / "1" / "model.safetensors", arrays)
    write_safetensors(tmp_path / "2" / "model.safetensors", {"b": arrays["a"]})
    write_safetensors(tmp_path / "3" / "model.safetensors", {"a": arrays["a"].reshape(2, 8)})
    assert len({sampled(tmp_path / n) for n in "123"}) == 3


@given(st.integers(0, 2**20), st.integers(0, 2**20), st.integers(1, 40))
def test_places_are_apart_and_within_their_tensor(begin: int, length: int, count: int) -> None:
    region = Region(begin, begin + length)
    found = list(places(region, count))
    assert all(region.begin <= p.begin <= p.end <= region.end for p in found)
    assert all(a.end <= b.begin for a, b in itertools.pairwise(found))
    assert sum(p.end - p.begin for p in found) == min(length, count * BLOCK)


def test_one_byte_is_seen_by_the_full_digest_only(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tensor that is mostly not sampled."""
    monkeypatch.setattr(sampled_module, "BLOCKS", 30)
    folder = write_model(tmp_path / "m", two_layers(rows=100))
    file = folder / "model.safetensors"
    before = sampled(folder), full(folder, tmp_path / "cache")
    region = outline(file).regions[0]
    read = list(places(region, 10))
    change_byte(file, next(a.end for a, b in itertools.pairwise(read) if a.end < b.begin))
    assert sampled(folder) == before[0]
    assert full(folder, tmp_path / "cache") != before[1]


def test_torch_files_are_seen_whole_by_their_directory(tmp_path: Path) -> None:
    """A zip file lists the checksum of every storage."""
    folder = tmp_path / "m"
    folder.mkdir()
    rng = np.random.default_rng(0)
    storage = bytearray(rng.bytes(40 << 20))
    digests = set()
    for change in (0, 12_345_678):
        storage[change] ^= 1
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
            archive.writestr(zipfile.ZipInfo("archive/data/0"), bytes(storage))
        digests.add(sampled(folder))
    assert len(digests) == 2


def test_files_of_unknown_shape_are_sampled_all_over(tmp_path: Path) -> None:
    """gguf, with all its parts."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.02, 20_000_000).astype(np.float16)
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(b"GGUF")
    digests = set()
    for _ in range(2):
        values *= np.float16(1.01)
        (tmp_path / "m-00002-of-00002.gguf").write_bytes(values.tobytes())
        digests.add(sampled(first, "gguf"))
    assert len(digests) == 2


# --- which files --------------------------------------------------------------------------------


def test_what_is_not_loaded_does_not_count(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    alone = sampled(folder)
    (folder / "pytorch_model.bin").write_bytes(b"of another tool")
    assert sampled(folder) == alone
    assert sampled(folder, "pt") != alone, "but where it may be loaded, it does"


def test_weights_in_folders_below_count_where_they_may_be_loaded(tmp_path: Path) -> None:
    deep = tmp_path / "ranks" / "model-rank-0-part-0.safetensors"
    write_safetensors(deep, {"a": bfloat16(np.ones(4))})
    assert [f.name for f in weight_files(str(tmp_path), "sharded_state")] == [
        "ranks/model-rank-0-part-0.safetensors"
    ]


@pytest.mark.parametrize("load_format", ["dummy", "remote", "remote_instance", "presharded"])
def test_weights_from_elsewhere_are_refused(tmp_path: Path, load_format: str) -> None:
    write_model(tmp_path, two_layers(rows=1))
    with pytest.raises(WeightsUnreadable, match=load_format):
        weight_files(str(tmp_path), load_format)


@pytest.mark.parametrize("path", ["Qwen/Qwen3-8B", "s3://bucket/model", ""])
def test_a_name_is_no_folder(path: str) -> None:
    with pytest.raises(WeightsUnreadable, match="no file or folder"):
        weight_files(path or "/nowhere", "auto")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsUnreadable, match="has no weights"):
        weight_files(str(tmp_path), "auto")


@pytest.mark.parametrize("cut", [0, 4, 8, 20, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    file = write_model(tmp_path, two_layers(rows=1)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsUnreadable, match=r"model\.safetensors"):
        sampled(tmp_path)


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8_000_000]}})
    body = struct.pack("<Q", len(text)) + text.encode() + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(body)
    with pytest.raises(WeightsUnreadable, match="lies outside"):
        sampled(tmp_path)


# --- full, and what is remembered ---------------------------------------------------------------


def test_a_file_is_read_once_for_each_state(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    first = full(folder, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", _must_not_read)
        assert full(folder, tmp_path / "cache") == first
    values = two_layers(rows=10, seed=3)
    write_model(folder, values)
    assert full(folder, tmp_path / "cache") != first


def _must_not_read(*args: object) -> int:
    raise AssertionError("a file that is known was read")


def test_equal_files_elsewhere_have_the_same_full_digest(tmp_path: Path) -> None:
    here = write_model(tmp_path / "here", two_layers(rows=10))
    shutil.copytree(here, tmp_path / "there")
    assert full(here, tmp_path / "1") == full(tmp_path / "there", tmp_path / "2")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    full(folder, tmp_path / "cache")
    assert Remembered(tmp_path / "cache").load() == {}


def test_only_its_owner_can_write_to_the_memory(tmp_path: Path, settled: None) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    cache = tmp_path / "cache"
    full(folder, cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert (cache / "weights.json").stat().st_mode & 0o777 == 0o600
    assert len(Remembered(cache).load()) == 1


@pytest.mark.parametrize("loosened", ["cache", "cache/weights.json"])
def test_a_memory_that_others_can_write_to_is_not_used(
    tmp_path: Path, settled: None, loosened: str
) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    right = full(folder, tmp_path / "cache")
    memory = tmp_path / "cache" / "weights.json"
    rows = json.loads(memory.read_text())
    rows[0][5] = "0" * 64
    memory.write_text(json.dumps(rows))
    assert full(folder, tmp_path / "cache") != right, "the memory is believed"
    (tmp_path / loosened).chmod(0o777)
    assert full(folder, tmp_path / "cache") == right


@pytest.mark.parametrize("text", ["", "{", "[[1]]", '{"a": 1}', "[null]"])
def test_a_memory_that_makes_no_sense_is_not_used(tmp_path: Path, settled: None, text: str) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    right = full(folder, tmp_path / "cache")
    (tmp_path / "cache" / "weights.json").write_text(text)
    assert full(folder, tmp_path / "cache") == right


def test_without_a_place_to_remember_it_is_read_every_time(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    (tmp_path / "taken").write_text("a file")
    assert full(folder, tmp_path / "taken" / "cache") == full(folder, tmp_path / "cache")
