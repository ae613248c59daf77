# PYTHON_ARGCOMPLETE_OK
"""The `dualpath` command: argparse with one subparser per command, completed by argcomplete."""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import argcomplete

from dualpath_sglang.contract.errors import ConfigError, DualPathError, StartupError


class Command(NamedTuple):
    """`describe(parser, words)` in `module` declares the flags and sets what runs as `run`.
    `passes_on`: another program reads the words, also those after `--help`."""

    help: str
    module: str
    describe: str = "describe"
    passes_on: bool = False


_CONFIG = "agent_runtime.commands.config"
COMMANDS = {
    "up": Command(
        "start a stack: store, engines, renderer and router, until Ctrl-C",
        "agent_runtime.commands.up",
    ),
    "check-config": Command(
        "read a configuration file and say what is wrong with it", _CONFIG, "describe_check"
    ),
    "config-docs": Command(
        "print every setting, its type, default and meaning", _CONFIG, "describe_docs"
    ),
    "config-schema": Command(
        "print the JSON schema of the configuration file, for editors", _CONFIG, "describe_schema"
    ),
    "make-model": Command(
        "write a small deterministic model for tests and the demo",
        "agent_runtime.commands.make_model",
        passes_on=True,
    ),
    "doctor": Command(
        "examine a running stack hop by hop: exit code 0, or 1 where one is broken",
        "agent_runtime.doctor.cli",
    ),
    "replay": Command(
        "replay agent sessions against a running router, with a report", "benchmarks.replay.cli"
    ),
    "completion": Command(
        "print the script that completes commands and flags in a shell",
        "agent_runtime.commands.completion",
    ),
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **words: Any) -> None:
        shape = functools.partial(argparse.HelpFormatter, max_help_position=28)
        super().__init__(**{"formatter_class": shape, "allow_abbrev": False, **words})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. 2: a mistake in the input or at start-up."""
    completing = "_ARGCOMPLETE" in os.environ
    words = list(sys.argv[1:] if argv is None else argv)
    if completing:
        words = os.environ.get("COMP_LINE", "").split()[1:]
    name = words[0] if words and words[0] in COMMANDS else ""
    called = f"dualpath {name}".rstrip()
    try:
        parser = _parser(name, words[1:])
        if completing:
            argcomplete.autocomplete(parser)
        options = _parsed(parser, words)
        return int(options.run(options))
    except SystemExit as left:  # argparse, after --help and --version
        return int(left.code or 0)
    except (ConfigError, StartupError) as error:
        print(f"{called}: {error.message}", file=sys.stderr)
        return 2
    except DualPathError as error:
        print(f"{called}: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{called}: interrupted", file=sys.stderr)
        return 130


def _parser(chosen: str, rest: Sequence[str]) -> argparse.ArgumentParser:
    """All commands by name; only the chosen one has its flags, which need its modules."""
    parser = _Parser(prog="dualpath", formatter_class=argparse.RawDescriptionHelpFormatter)
    lines = (f"  {name:14} {command.help}\n" for name, command in COMMANDS.items())
    parser.description = f"Serves LLM agents over two paths.\n\ncommands:\n{''.join(lines)}"
    parser.usage = "dualpath COMMAND ..."
    parser.epilog = "`dualpath COMMAND --help` describes one command."
    version = importlib.metadata.version("dualpath-sglang")
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(prog="dualpath", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, add_help=not command.passes_on)
        if name == chosen:
            describe = getattr(importlib.import_module(command.module), command.describe)
            describe(own, rest)
            known = [flag for action in own._actions for flag in action.option_strings]
            own.set_defaults(known=known)
    return parser


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Like parse_args, but what is unknown is a ConfigError that names what is near."""
    if not words:
        parser.print_help()
        parser.exit(2)
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        hint = _nearest(words[0], COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {words[0]!r}{hint}")
    options, unknown = parser.parse_known_args(words)
    if words[0] not in COMMANDS:
        parser.error(f"unknown argument {words[0]!r}")
    if COMMANDS[words[0]].passes_on:
        options.words = unknown
        return options
    for word in unknown:
        flag = word.split("=")[0]
        hint = _nearest(flag, options.known) or "; see --help"
        raise ConfigError(f"unknown argument {flag!r}{hint}", field=flag)
    return options


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


if __name__ == "__main__":
    sys.exit(main())
