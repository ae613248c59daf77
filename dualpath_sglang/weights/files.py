"""Which files an engine's weights are read from, and a look at them that shows later changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualpath_sglang.contract.errors import WeightsUnreadable

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npy", ".npz")
SAFETENSORS_FORMATS = ("auto", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer")
"""SGLang's `--load-format` that read `*.safetensors` of the folder itself and, where there is one,
nothing else."""
READ_FORMATS = (
    *SAFETENSORS_FORMATS,
    "bitsandbytes",
    "gguf",
    "layered",
    "mistral",
    "npcache",
    "pt",
    "sharded_state",
)
"""All whose weights are what lies in the model's folder. Not `presharded`: what it wrote there
once may be older than the weights beside it."""
_PART = re.compile(r"(.*)-\d+-of-\d+\.gguf")


@dataclass(frozen=True)
class WeightFile:
    """name: within the model's folder, the same wherever that lies."""

    name: str
    path: Path


@dataclass(frozen=True)
class Look:
    """What the file system says of a file; every write changes it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def weight_files(model_path: str, load_format: str) -> tuple[WeightFile, ...]:
    """Sorted by name. Too many do no harm (an unread file only keeps two engines apart), one too
    few would. Raises WeightsUnreadable: not on this machine, or not what this format loads."""
    if load_format not in READ_FORMATS:
        raise WeightsUnreadable(
            f"weights of load format {load_format!r} cannot be read from the model's folder"
        )
    path = Path(model_path)
    if path.is_file():
        found = [WeightFile(part.name, part) for part in _parts(path)]
    elif path.is_dir():
        found = _of_folder(path, load_format)
    else:
        raise WeightsUnreadable(f"{model_path!r} is no file or folder of this machine")
    if not found:
        raise WeightsUnreadable(f"{model_path!r} has no weights ({', '.join(SUFFIXES)})")
    return tuple(sorted(found, key=lambda file: file.name))


def look(files: Iterable[WeightFile]) -> tuple[Look, ...]:
    """Raises WeightsUnreadable where one is gone."""
    return tuple(look_at(file.path) for file in files)


def look_at(path: Path) -> Look:
    try:
        seen = os.stat(path)
    except OSError as error:
        raise WeightsUnreadable(f"{str(path)!r} cannot be read: {error}") from error
    return Look(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _of_folder(folder: Path, load_format: str) -> list[WeightFile]:
    if load_format in SAFETENSORS_FORMATS:
        flat = [WeightFile(path.name, path) for path in folder.glob("*.safetensors")]
        if flat:
            return flat
    deep = (path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return [WeightFile(path.relative_to(folder).as_posix(), path) for path in deep]


def _parts(file: Path) -> Sequence[Path]:
    """Of a gguf model in several files, all of them."""
    named = _PART.fullmatch(file.name)
    if named is None:
        return [file]
    pattern = re.compile(re.escape(named[1]) + r"-\d+-of-\d+\.gguf")
    return [path for path in file.parent.iterdir() if pattern.fullmatch(path.name)]
