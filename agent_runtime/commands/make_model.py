"""`dualpath make-model`: a process of its own, because this one never imports torch."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence


def describe(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """`dualpath_sglang.testmodel` reads all words."""
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    return subprocess.call([sys.executable, "-m", "dualpath_sglang.testmodel", *options.words])
