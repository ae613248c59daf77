"""`dualpath completion SHELL`: completion of commands, flags and their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from argcomplete.shell_integration import shellcode

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def describe(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = "Print the completion script of a shell."
    parser.epilog = 'bash and zsh: eval "$(dualpath completion bash)" in their start-up file'
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    print(shellcode(["dualpath"], shell=options.shell))
    return 0
