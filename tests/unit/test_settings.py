"""The strict loader: precedence, round trip, and what a mistake is told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from agent_runtime.commands.settings_page import docs, schema
from agent_runtime.config import EngineGroup, RouterConfig, StackConfig
from agent_runtime.settings import decode, dump_yaml, leaves, load
from agent_runtime.yaml_file import KeyPath, YamlFile
from dualpath_sglang.contract.engine_config import EngineConfig, variable
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.kinds import parts


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "stack.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
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
    assert config.store == msgspec.structs.replace(StackConfig().store, protocol="rdma")


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
        ("routr: {}", "unknown key 'routr' in FILE:1; did you mean 'router'?"),
        ("router: {prot: 1}", "unknown key 'router.prot' in FILE:1; did you mean 'router.port'?"),
        ("turn_deadline_s: 1", "in FILE:1; did you mean 'router.turn_deadline_s'?"),
        ("engines: [{rol: decode}]", "'engines[0].rol' in FILE:1; did you mean 'engines[0].role'?"),
        ("xyzzy: 1", "unknown key 'xyzzy' in FILE:1; valid keys: model, cpu"),
        ("engines: [{role: prefil}]", "engines[0].role in FILE:1: expected one of prefill, decode"),
        ("seed: many", "seed in FILE:1: expected whole number (0 to 4294967295), got 'many'"),
        ("seed: true", "seed in FILE:1: expected whole number (0 to 4294967295), got True"),
        ("seed: 1.5", "seed in FILE:1: expected whole number (0 to 4294967295), got 1.5"),
        ("cpu: 1", "cpu in FILE:1: expected true or false, got 1"),
        ("model: llama", "model in FILE:1: expected a mapping of settings, got 'llama'"),
        ("model: {path: 8}", "model.path in FILE:1: expected text, got 8 (write it in quotes)"),
        ("engines: {role: decode}", "engines in FILE:1: expected a list"),
        ("engines: [{flags: {a: [1]}}]", "engines[0].flags.a in FILE:1: expected text or"),
        ("engines: [{env: {A: 1}}]", "engines[0].env.A in FILE:1: expected text, got 1"),
        ("max_restarts: -1", "max_restarts in FILE:1: expected whole number (at least 0), got -1"),
        ("on_child_exit: {router: reboot}", "expected one of stop, keep, restart, got 'reboot'"),
        ("[1]", "the file in FILE:1: expected a mapping of settings"),
        ("cpu: true\nrouter:\n  prot: 1", "'router.prot' in FILE:3; did you mean 'router.port'?"),
        ("seed: 0\nengines:\n  - {}\n  - role: x", "engines[1].role in FILE:4: expected one of"),
        ("seed: 1\nseed: 2", "FILE:2: not valid YAML: the key 'seed' is written twice"),
        ("router: {port: 1,\n port: 2}", "FILE:2: not valid YAML: the key 'port' is written twice"),
        ("seed: 1\nmodel: [", "FILE:2: not valid YAML: expected the node content"),
        ("seed: 1\nmodel: \x07", "FILE:2: not valid YAML: the character U+0007 is not allowed"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        (
            "cpu: true\nhicache_ratio: .inf",
            "hicache_ratio in FILE:2: expected number (0 to 1000000)",
        ),
        ("router: {turn_deadline_s: .nan}", "router.turn_deadline_s in FILE:1: expected number"),
        ("engines: [{flags: {a: .nan}}]", "engines[0].flags.a in FILE:1: expected text or"),
        ("seed: 1e3", "seed in FILE:1: expected whole number (0 to 4294967295)"),
        (
            "router: {port: 65536}",
            "router.port in FILE:1: expected whole number (0 to 65535)",
        ),
    ],
)
def test_mistakes_in_the_file(text: str, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(StackConfig, file=file)
    assert says.replace("FILE", str(file)) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nmodel: {path: modèle}\n".encode(encoding))
    with pytest.raises(ConfigError) as caught:
        load(StackConfig, file=file)
    assert caught.value.message.startswith(f"{file}:")
    assert "\n" not in caught.value.message
    if encoding == "latin-1":
        assert caught.value.message.startswith(f"{file}:2: ")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 7\n".encode("utf-8-sig"))
    assert load(StackConfig, file=file).seed == 7


def test_merge_keys(tmp_path: Path) -> None:
    text = """
engines:
  - &p {role: prefill, flags: {chunked-prefill-size: 512}}
  - &d {<<: *p, role: decode}
  - {<<: [*d, *p], count: 2, role: plain}
"""
    prefill, decode_, plain = load(StackConfig, file=write(tmp_path, text)).engines
    assert prefill.flags == decode_.flags == plain.flags == {"chunked-prefill-size": 512}
    assert (decode_.role, plain.role, plain.count) == ("decode", "plain", 2)


def test_a_mistake_behind_a_merge_key_has_its_own_line(tmp_path: Path) -> None:
    text = "engines:\n  - &p {rol: prefill}\n  - <<: *p\n    count: x\n"
    with pytest.raises(ConfigError, match=r"engines\[0\]\.rol' in .*:2;"):
        load(StackConfig, file=write(tmp_path, text))
    text = text.replace("rol:", "role:")
    with pytest.raises(ConfigError, match=r"engines\[1\]\.count in .*:4: expected whole number"):
        load(StackConfig, file=write(tmp_path, text))


@pytest.mark.parametrize("written", ["1e3", "1.0e+3", "1000", "1_000", "1E3", "+1e+3", "1.e3"])
def test_a_number_with_an_exponent(written: str, tmp_path: Path) -> None:
    file = write(tmp_path, f"router: {{turn_deadline_s: {written}}}\n")
    assert load(StackConfig, file=file).router.turn_deadline_s == 1000
    env = {"DUALPATH_ROUTER_TURN_DEADLINE_S": written}
    assert load(StackConfig, env=env).router.turn_deadline_s == 1000


@pytest.mark.parametrize("word", ["nan", ".nan", "inf", "-.inf", "1e999", "Infinity"])
def test_no_number_is_endless_or_none(word: str) -> None:
    """Event loops and comparisons take no such number; every setting refuses it."""
    kinds = [(StackConfig, s) for s in leaves(StackConfig)]
    for cls, setting in kinds:
        if parts(setting.kind)[0] in (int, float):
            with pytest.raises(ConfigError, match=f"^{setting.path} in flag {setting.flag}: "):
                load(cls, flags={setting.path: word})
    for setting in leaves(EngineConfig):
        if parts(setting.kind)[0] in (int, float):
            name = variable(setting.path)
            with pytest.raises(ConfigError, match=f"^{name} is "):
                EngineConfig.from_env({name: word})


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*No such file"):
        load(StackConfig, file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"DUALPATH_API_KEYS": "1"}, "unknown environment variable 'DUALPATH_API_KEYS'"),
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
    with pytest.raises(
        ConfigError, match=r"page_size in flag --page-size: expected whole number .at least 1"
    ):
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
    for config in (StackConfig(), EngineGroup(), EngineConfig()):
        assert decode(type(config), msgspec.to_builtins(config), "defaults") == config


def test_the_schema_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes what the loader takes, refuses what it refuses, and has the texts."""
    tree = schema()
    jsonschema.Draft202012Validator.check_schema(tree)
    valid = jsonschema.Draft202012Validator(tree).is_valid
    assert valid(json.loads(msgspec.json.encode(StackConfig())))
    assert valid({"engines": [{"role": "decode", "flags": {"tp-size": 4, "x": True}}]})
    assert not valid({"router": {"prot": 1}})
    assert not valid({"router": {"port": -1}})
    assert not valid({"engines": [{"role": "prefil"}]})
    port = tree["$defs"]["RouterConfig"]["properties"]["port"]
    assert port["description"].startswith("port to listen on")


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    number: float = 0.0
    word: Literal["a", "b"] = "a"


class Outer(Struct, frozen=True, forbid_unknown_fields=True):
    text: str = ""
    count: int = 0
    on: bool = False
    maybe: int | None = None
    inner: Inner = Inner()
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
    written = YamlFile(file)
    assert decode(Outer, written.tree, written.where) == value


numbers = st.from_regex(r"[-+]?[0-9_.]{0,4}([eE][-+]?[0-9]{1,2})?", fullmatch=True)


@given(numbers)
def test_text_that_looks_like_a_number_stays_text(tmp_path_factory: Any, word: str) -> None:
    file = tmp_path_factory.getbasetemp() / "numbers.yaml"
    file.write_text(dump_yaml(Outer(text=word)), encoding="utf-8")
    assert YamlFile(file).tree["text"] == word


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Outer.__struct_fields__, "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(trees)
def test_whatever_does_not_fit_is_one_error_that_names_it(tree: Any) -> None:
    seen: list[KeyPath] = []

    def where(path: KeyPath) -> str:
        seen.append(path)
        return "here"

    with contextlib.suppress(msgspec.ValidationError):
        msgspec.convert(tree, Outer)
        return
    with pytest.raises(ConfigError, match=" in here"):
        decode(Outer, tree, where)
    assert len(seen) == 1
