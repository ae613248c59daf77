"""`dualpath check-config`, `config-docs` and `config-schema`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from agent_runtime.commands.settings_page import docs, schema
from agent_runtime.config import StackConfig
from agent_runtime.settings import load
from agent_runtime.stack.validate import validate


def describe_check(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = "Read a configuration file and check it; nothing is started."
    parser.add_argument("file", metavar="FILE", help="YAML file")
    parser.set_defaults(run=_check)


def describe_docs(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = "Print every setting as Markdown."
    parser.set_defaults(run=_docs)


def describe_schema(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = (
        "Print the JSON schema of the configuration file. Editors with a YAML language server "
        "complete and check a file that begins with `# yaml-language-server: $schema=FILE`."
    )
    parser.set_defaults(run=_schema)


def _check(options: argparse.Namespace) -> int:
    validate(load(StackConfig, file=options.file, env=os.environ))
    print(f"{options.file}: ok")
    return 0


def _docs(options: argparse.Namespace) -> int:
    print(docs(), end="")
    return 0


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(schema(), indent=1))
    return 0
