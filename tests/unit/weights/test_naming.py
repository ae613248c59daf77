"""What names weights and pages: while they are loaded, through updates, for the store."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_folders import change_byte, two_layers, write_model

from dualpath_sglang.contract.errors import WeightsUnreadable
from dualpath_sglang.namespace import namespace_of, that_matter
from dualpath_sglang.weights import sampled
from dualpath_sglang.weights.reading import Naming, Source
from dualpath_sglang.weights.version import WeightsVersion

CONFIG = {
    "model_type": "qwen3",
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0},
    "hidden_size": 128,
    "quantization_config": {"bits": 4, "dtype": "int4"},
    "_name_or_path": "/models/one",
    "torch_dtype": "bfloat16",
    "transformers_version": "5.1",
    "eos_token_id": [1, 2],
}


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def source(folder: Path, load_format: str = "auto") -> Source:
    return Source(str(folder), load_format)


# --- while they are loaded ----------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["sampled", "full"])
def test_weights_are_named_by_what_they_are(tmp_path: Path, digest: str) -> None:
    naming = Naming(digest)  # type: ignore[arg-type]
    folder = write_model(tmp_path / "a" / "model", two_layers(seed=8, rows=10))
    other = write_model(tmp_path / "b" / "model", two_layers(seed=9, rows=10))
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    named = [naming.start(source(path)).end() for path in (folder, other, copy)]
    assert named[0] == named[2] != named[1]
    assert named[0].startswith(f"{digest}-1:")


def test_the_two_digests_are_never_equal(tmp_path: Path) -> None:
    folder = source(write_model(tmp_path / "m", two_layers(rows=10)))
    assert Naming("full").start(folder).end() != Naming("sampled").start(folder).end()


@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_the_operator_names_what_cannot_be_read(load_format: str) -> None:
    nowhere = Source("org/model", load_format)
    assert Naming(name="mine").start(nowhere).end() == "named:mine"
    with pytest.raises(WeightsUnreadable):
        Naming().start(nowhere)
    with pytest.raises(WeightsUnreadable):
        Naming(name="mine").read(nowhere)


def test_weights_that_change_while_they_are_loaded_have_no_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))
    reading = Naming().start(source(folder))
    change_byte(folder / "model.safetensors", 5000)
    with pytest.raises(WeightsUnreadable, match="written to while they were loaded"):
        reading.end()
    reading = Naming().start(source(folder))
    shutil.rmtree(folder)
    with pytest.raises(WeightsUnreadable):
        reading.end()


def test_what_goes_wrong_in_the_thread_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m", two_layers(rows=10))

    def broken(*args: object) -> str:
        raise WeightsUnreadable("a bad disk (stub)")

    monkeypatch.setattr(sampled, "outline", broken)
    with pytest.raises(WeightsUnreadable, match="a bad disk"):
        Naming().start(source(folder)).end()


# --- through updates ----------------------------------------------------------------------------


def version(start: str = "sampled-1:a", mark: str = "") -> WeightsVersion:
    count = itertools.count()
    return WeightsVersion(start, lambda: f"{mark}{start}{next(count)}")


def test_two_engines_with_equal_updates_are_equal() -> None:
    one, two = version(), version()
    for engine in (one, two):
        engine.labelled("7")
    assert one.now == two.now != version().now
    two.unknown()
    assert one.now != two.now
    assert one.labelled("8") == two.labelled("8")


def test_equal_labels_on_other_weights_are_not_equal() -> None:
    assert version("sampled-1:a").labelled("1") != version("sampled-1:b").labelled("1")


def test_an_update_from_disk_is_as_a_start_from_there() -> None:
    updated = version("sampled-1:a")
    updated.labelled("1")
    assert updated.read("sampled-1:b") == version("sampled-1:b").now
    assert updated.labelled("2") == version("sampled-1:b").labelled("2")


def test_an_unknown_state_is_like_no_other() -> None:
    one, two = WeightsVersion("a"), WeightsVersion("a")
    assert len({one.now, one.unknown(), one.unknown(), two.unknown()}) == 4


steps = st.lists(
    st.one_of(
        st.tuples(st.just("labelled"), st.sampled_from("12")),
        st.tuples(st.just("read"), st.sampled_from(["sampled-1:a", "sampled-1:b"])),
        st.just(("unknown",)),
    ),
    max_size=6,
)


@given(steps, steps)
def test_names_are_equal_only_where_weights_may_be(one: list[str], two: list[str]) -> None:
    """The model of this test: weights are the folder and the label since, or nobody knows."""
    found = []
    for mark, story in (("x", one), ("y", two)):
        made, truth = version(mark=mark), ("sampled-1:a", "")
        for i, (door, *value) in enumerate(story):
            getattr(made, door)(*value)
            match door:
                case "labelled":
                    truth = (truth[0], value[0])
                case "read":
                    truth = (value[0], "")
                case _:
                    truth = (truth[0], f"{mark}{i}")
        found.append((made.now, truth))
    (name_one, truth_one), (name_two, truth_two) = found
    assert (name_one == name_two) == (truth_one == truth_two)


# --- for the store ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_name_or_path", "torch_dtype", "eos_token_id", "dtype"])
def test_what_changes_no_kv_does_not_count(name: str) -> None:
    assert that_matter(CONFIG) == that_matter({**CONFIG, name: "other"})
    nested = {"text_config": CONFIG}
    assert that_matter(nested) == that_matter({"text_config": {**CONFIG, name: "other"}})


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 20000.0},
        {"rope_scaling": {"type": "yarn", "factor": 8.0}},
        {"quantization_config": {"bits": 4, "dtype": "int8"}},
        {"a_field_that_nobody_knows": 1},
    ],
    ids=str,
)
def test_everything_else_counts(change: dict[str, object]) -> None:
    assert that_matter({**CONFIG, **change}) != that_matter(CONFIG)
    assert namespace_of(that_matter({**CONFIG, **change})) != namespace_of(that_matter(CONFIG))


def test_a_namespace_does_not_depend_on_order_or_addresses() -> None:
    class Thing:
        pass

    one = that_matter({**CONFIG, "thing": Thing(), "kinds": {"b", "a"}})
    two = that_matter({"kinds": {"a", "b"}, "thing": Thing(), **dict(reversed(CONFIG.items()))})
    assert namespace_of(one) == namespace_of(two)
    assert len(namespace_of(one)) == 32
