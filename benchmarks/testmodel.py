"""The test model that benchmarks serve, made once per folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dualpath_sglang.contract.errors import StartupError


def make_model(folder: Path, show: Callable[[str], None], **size: int) -> None:
    """Write the test model, of `size` where it is given (the options of `dualpath make-model`),
    unless it is there. Raises StartupError with the command's own words when it fails."""
    # Both, so that a folder left behind by an interrupted run is written anew.
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
        return
    show(f"making a test model in {folder}")
    words = [sys.executable, "-m", "dualpath_sglang.testmodel", "--out", str(folder)]
    for name, value in size.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartupError(f"the test model could not be made:\n{done.stderr[-2000:]}")
