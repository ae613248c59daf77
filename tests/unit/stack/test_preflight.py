"""What is checked before anything starts, and the causes read from logs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent_runtime.config import ModelConfig, StackConfig
from agent_runtime.stack.causes import describe_exit, likely_cause
from agent_runtime.stack.preflight import MOONCAKE_WHEELS, find_program, preflight
from dualpath_sglang.contract.errors import ConfigError, StartupError


def run(config: StackConfig, wheels: tuple[str, ...] = MOONCAKE_WHEELS[1:]) -> None:
    preflight(config, ("sh",), load_verbs=lambda: None, is_installed=lambda w: w in wheels)


@pytest.fixture
def config(model: str) -> StackConfig:
    return StackConfig(model=ModelConfig(path=model))


def test_all_is_well(config: StackConfig) -> None:
    run(config)


def test_model_path_that_does_not_exist(config: StackConfig, tmp_path: Path) -> None:
    missing = msgspec.structs.replace(config, model=ModelConfig(path=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"model\.path: there is no folder") as caught:
        run(missing)
    assert caught.value.field == "model.path"


def test_model_path_without_config_json(config: StackConfig, tmp_path: Path) -> None:
    bare = msgspec.structs.replace(config, model=ModelConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        run(bare)


def test_missing_libibverbs(config: StackConfig) -> None:
    def missing() -> None:
        raise OSError("libibverbs.so.1: cannot open shared object file")

    with pytest.raises(StartupError, match="apt-get install libibverbs1"):
        preflight(config, ("sh",), load_verbs=missing, is_installed=one_wheel)


def test_both_mooncake_wheels(config: StackConfig) -> None:
    with pytest.raises(StartupError, match="both mooncake-transfer-engine and"):
        run(config, MOONCAKE_WHEELS)


def test_no_mooncake_wheel(config: StackConfig) -> None:
    with pytest.raises(StartupError, match="Mooncake is not installed"):
        run(config, ())


def test_missing_master(config: StackConfig) -> None:
    with pytest.raises(StartupError, match="no-such-master is neither beside"):
        preflight(config, ("no-such-master",), load_verbs=lambda: None, is_installed=one_wheel)
    assert find_program("sh").endswith("/sh")


def one_wheel(name: str) -> bool:
    return name == MOONCAKE_WHEELS[0]


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("ImportError: libibverbs.so.1: cannot open shared object", 1, "libibverbs1"),
        ("OSError: [Errno 98] error while attempting to bind", 1, "a port is in use"),
        ("[Errno 98] address already in use", 1, "a port is in use"),
        ("launch: error: unrecognized arguments: --pge-size", 2, "a flag SGLang does not know"),
        ("OSError: /m does not appear to have a file named config.json", 1, "model.path"),
        ("ModuleNotFoundError: No module named 'sglang'", 1, "make setup"),
        ("AssertionError: Torch not compiled with CUDA enabled", 1, "cpu: true"),
        ("torch.OutOfMemoryError: CUDA out of memory.", 1, "out of memory"),
        ("", -9, "killed from outside"),
        ("", -11, "crashed in native code (SIGSEGV)"),
        ("RuntimeError: layer 3 is odd", 1, "its log ends with RuntimeError: layer 3 is odd"),
        ("loaded config.json and 'model not quantized'", 1, ""),
        ("nothing known", 1, ""),
    ],
)
def test_likely_causes(line: str, code: int, says: str) -> None:
    cause = likely_cause(["before", line, "after"], code)
    assert says in cause
    assert bool(says) == bool(cause)


def test_exits_in_words() -> None:
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(None) == "ended"
