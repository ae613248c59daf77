"""Checks of this machine before anything is started, so that the common mistakes take no minute."""

from __future__ import annotations

import ctypes
import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from agent_runtime.config import StackConfig
from agent_runtime.stack.commands import Argv
from agent_runtime.stack.names import named_engines
from agent_runtime.stack.sglang_flags import check_flags, known_flags
from agent_runtime.stack.validate import validate
from dualpath_sglang.contract.errors import ConfigError, StartupError

MOONCAKE_WHEELS = ("mooncake-transfer-engine", "mooncake-transfer-engine-non-cuda")


def load_libibverbs() -> None:
    """Raises OSError when the library that Mooncake links against cannot be loaded."""
    ctypes.CDLL("libibverbs.so.1")


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def preflight(
    config: StackConfig,
    master: Argv,
    *,
    load_verbs: Callable[[], None] = load_libibverbs,
    is_installed: Callable[[str], bool] = installed,
) -> None:
    """Raise ConfigError or StartupError for the first thing that cannot work."""
    validate(config)
    local = [e for e in named_engines(config) if not e.group.url]
    if local or (config.start_router and config.start_renderer):
        check_model(config.model.path)
    check_flags(config, known_flags())
    uses_mooncake = any(e.group.role != "plain" for e in local)
    if uses_mooncake or (config.store.enabled and config.store.segment_bytes):
        check_mooncake(load_verbs, is_installed)
    if config.store.enabled and not config.store.master_url:
        find_program(master[0])


def check_model(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        message = f"model.path: there is no folder {path!r}; give the folder of a model"
        raise ConfigError(f"{message}, or write one with `dualpath make-model`", field="model.path")
    if not (folder / "config.json").is_file():
        message = f"model.path: {path!r} has no config.json, so it is no complete model folder"
        raise ConfigError(message, field="model.path")


def check_mooncake(load_verbs: Callable[[], None], is_installed: Callable[[str], bool]) -> None:
    wheels = [wheel for wheel in MOONCAKE_WHEELS if is_installed(wheel)]
    if len(wheels) > 1:
        raise StartupError(
            f"both {wheels[0]} and {wheels[1]} are installed and overwrite each other's files; "
            f"uninstall both, then install {wheels[0]} (GPU) or {wheels[1]} (CPU)"
        )
    if not wheels:
        raise StartupError(
            f"Mooncake is not installed; install {MOONCAKE_WHEELS[0]} (GPU) or "
            f"{MOONCAKE_WHEELS[1]} (CPU; `make setup` does it)"
        )
    try:
        load_verbs()
    except OSError as error:
        raise StartupError(
            f"Mooncake cannot be loaded ({error}); install the library: apt-get install libibverbs1"
        ) from error


def find_program(name: str) -> str:
    """Full path of a program, looked for beside this Python first. Raises StartupError."""
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise StartupError(
            f"{name} is neither beside {sys.executable} nor on PATH; it comes with the Mooncake "
            "wheel (`make setup`)"
        )
    return found
