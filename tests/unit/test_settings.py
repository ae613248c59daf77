"""The strict loader: precedence, round trip, and what a mistake is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.config import EngineGroup, RouterConfig, StackConfig
from agent_runtime.settings import decode, dump_yaml, leaves, load, read_yaml, to_tree
from agent_runtime.settings_cli import docs
from dualpath_sglang.contract.engine_config import EngineConfig, variable
from dualpath_sglang.contract.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "stack.yaml"
    file.write_text(text)
    return file


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\npage_size: 1\nrouter: {port: 1}\ndtype: file\n")
    config = load(
        StackConfig,
        file=file,
        env={"DUALPATH_PAGE_SIZE": "2", "DUALPATH_ROUTER_PORT": "2", "HOME": "/"},
        flags={"router.port": "3"},
    )
    assert (config.seed, config.page_size, config.router.port) == (1, 2, 3)
    assert config.dtype == "file"
    assert config.hicache_ratio == StackConfig().hicache_ratio


def test_a_section_in_the_file_keeps_the_other_defaults(tmp_path: Path) -> None:
    config = load(StackConfig, file=write(tmp_path, "store: {protocol: rdma}\n"))
    assert config.store == dataclasses.replace(StackConfig().store, protocol="rdma")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(StackConfig, file=write(tmp_path, "# nothing\n")) == StackConfig()


def test_engines_from_text() -> None:
    text = "[{role: decode, count: 2, flags: {tp-size: 4, enable-x: true, mem: 0.5, a: b}}]"
    config = load(StackConfig, flags={"engines": text})
    flags = {"tp-size": 4, "enable-x": True, "mem": 0.5, "a": "b"}
    assert config.engines == (EngineGroup(role="decode", count=2, flags=flags),)


def test_an_int_is_a_fine_float() -> None:
    assert load(StackConfig, flags={"hicache_ratio": "3"}).hicache_ratio == 3.0
    assert decode(StackConfig, {"hicache_ratio": 3}, "f").hicache_ratio == 3.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("routr: {}", "unknown key 'routr' in FILE; did you mean 'router'?"),
        ("router: {prot: 1}", "unknown key 'router.prot' in FILE; did you mean 'router.port'?"),
        ("turn_deadline_s: 1", "in FILE; did you mean 'router.turn_deadline_s'?"),
        ("engines: [{rol: decode}]", "'engines[0].rol' in FILE; did you mean 'engines[0].role'?"),
        ("xyzzy: 1", "unknown key 'xyzzy' in FILE; valid keys: model, cpu"),
        ("engines: [{role: prefil}]", "engines[0].role in FILE: expected one of prefill, decode"),
        ("seed: many", "seed in FILE: expected whole number, got 'many'"),
        ("seed: true", "seed in FILE: expected whole number, got True"),
        ("seed: 1.5", "seed in FILE: expected whole number, got 1.5"),
        ("cpu: 1", "cpu in FILE: expected true or false, got 1"),
        ("model: llama", "model in FILE: expected a mapping of settings, got 'llama'"),
        ("model: {path: 8}", "model.path in FILE: expected text, got 8 (write it in quotes)"),
        ("engines: {role: decode}", "engines in FILE: expected a list"),
        ("engines: [{flags: {a: [1]}}]", "engines[0].flags.a in FILE: expected text or"),
        ("engines: [{env: {A: 1}}]", "engines[0].env.A in FILE: expected text, got 1"),
        ("max_restarts: -1", "max_restarts in FILE: expected at least 0, got -1"),
        ("on_child_exit: {router: reboot}", "expected one of stop, keep, restart, got 'reboot'"),
        ("[1]", "the file in FILE: expected a mapping of settings"),
        ("seed: 1\nseed: 2", "key 'seed' is written twice"),
        ("seed: [", "FILE is not valid YAML"),
    ],
)
def test_mistakes_in_the_file(text: str, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(StackConfig, file=file)
    assert says.replace("FILE", str(file)) in caught.value.message


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*No such file"):
        load(StackConfig, file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"DUALPATH_SED": "1"}, "variable 'DUALPATH_SED'; did you mean 'DUALPATH_SEED'?"),
        ({"DUALPATH_SEED": "x"}, "seed in environment variable DUALPATH_SEED: expected whole"),
        ({"DUALPATH_CPU": "maybe"}, "cpu in environment variable DUALPATH_CPU: expected true or"),
    ],
)
def test_mistakes_in_the_environment(env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(StackConfig, env=env)
    assert says in caught.value.message


def test_the_variables_of_our_own_processes_are_no_settings() -> None:
    assert load(StackConfig, env={"DUALPATH_CHILD_TAG": "x"}) == StackConfig()


def test_mistakes_in_flags() -> None:
    with pytest.raises(ConfigError, match=r"page_size in flag --page-size: expected at least 1"):
        load(StackConfig, flags={"page_size": "0"})
    with pytest.raises(ConfigError, match=r"unknown setting 'rooter\.port'; did you mean"):
        load(StackConfig, flags={"rooter.port": "0"})


def test_the_error_names_the_field() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(StackConfig, {"router": {"port": "x"}}, "f.yaml")
    assert caught.value.field == "router.port"


def test_names_of_variables_and_flags_are_unique() -> None:
    for cls in (StackConfig, RouterConfig):
        settings = list(leaves(cls))
        assert len({s.env for s in settings}) == len(settings)
        assert len({s.flag for s in settings}) == len(settings)


def test_every_setting_has_a_help_text_and_is_in_the_docs() -> None:
    page = docs()
    for setting in (*leaves(StackConfig), *leaves(EngineGroup)):
        assert setting.help, setting.path
        assert f"| `{setting.path}` |" in page
    for setting in leaves(EngineConfig):
        assert setting.help, setting.path
        assert f"| `{variable(setting.path)}` |" in page


def test_defaults_keep_their_own_rules() -> None:
    assert decode(StackConfig, to_tree(StackConfig()), "defaults") == StackConfig()
    assert decode(EngineGroup, to_tree(EngineGroup()), "defaults") == EngineGroup()


@dataclass(frozen=True)
class Inner:
    number: float = 0.0
    word: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    text: str = ""
    count: int = 0
    on: bool = False
    maybe: int | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    names: tuple[str, ...] = ()


finite = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, number=finite, word=st.sampled_from(["a", "b"]))
# Surrogates and control characters cannot be written to a YAML file.
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")))
outers = st.builds(
    Outer,
    text=words,
    count=st.integers(-(10**9), 10**9),
    on=st.booleans(),
    maybe=st.none() | st.integers(0, 9),
    inner=inners,
    many=st.lists(inners, max_size=3).map(tuple),
    names=st.lists(words, max_size=3).map(tuple),
)


@given(outers)
def test_round_trip_through_yaml(tmp_path_factory: Any, value: Outer) -> None:
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    file.write_text(dump_yaml(value), encoding="utf-8")
    assert decode(Outer, read_yaml(file), "file") == value
