"""The `dualpath` command."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from agent_runtime.config import StackConfig
from agent_runtime.doctor.cli import main as doctor
from agent_runtime.settings import load
from agent_runtime.settings_cli import add_flags, docs, parse, schema, stack_config
from agent_runtime.stack.progress import Progress
from agent_runtime.stack.stack import RunningStack, Stack
from agent_runtime.stack.validate import validate
from dualpath_sglang.contract.errors import ConfigError, DualPathError, StartupError

COMMANDS = """\
commands:
  up            start a stack: store, engines, renderer and router, until Ctrl-C
  check-config  read a configuration file and say what is wrong with it
  config-docs   print every setting, its type, default and meaning
  config-schema print the JSON schema of the configuration file
  make-model    write a small deterministic model for tests and the demo
  doctor        examine a running stack hop by hop: exit code 0, or 1 where one is broken
  replay        replay agent sessions against a running router, with a report

`dualpath COMMAND --help` describes one command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. 2: a mistake in the input or at start-up."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "up": up,
        "check-config": check_config,
        "config-docs": config_docs,
        "config-schema": config_schema,
        "make-model": make_model,
        "doctor": doctor,
        "replay": replay,
    }
    if not words or words[0] in ("-h", "--help"):
        print("usage: dualpath COMMAND ...\n\n" + COMMANDS)
        return 0 if words else 2
    command = commands.get(words[0])
    if command is None:
        print(f"dualpath: unknown command {words[0]!r}\n\n{COMMANDS}", file=sys.stderr)
        return 2
    try:
        return command(words[1:])
    except (ConfigError, StartupError) as error:
        print(f"dualpath {words[0]}: {error.message}", file=sys.stderr)
        return 2
    except DualPathError as error:
        print(f"dualpath {words[0]}: {error.message}", file=sys.stderr)
        return 1


def up(argv: list[str]) -> int:
    """Start a stack and keep it until a signal or the end of a component."""
    parser = argparse.ArgumentParser(
        prog="dualpath up",
        usage="dualpath up [--config FILE] [--model PATH] [--cpu] [--prefill N] [--decode M] "
        "[--SETTING VALUE ...]",
        description="Start mooncake_master, a storage node, prefill and decode engines, the "
        "renderer and the router; Ctrl-C stops all of them.",
        epilog="example: dualpath up --model ./model --cpu --prefill 1 --decode 1",
        allow_abbrev=False,
    )
    add_flags(parser)
    config = stack_config(parse(parser, argv), os.environ)
    progress = Progress(sys.stderr)
    stack = Stack(config, on_event=progress)
    signalled = _stop_on_signals(stack)
    try:
        running = stack.start()
    except StartupError as error:
        if signalled.is_set():
            return 130
        raise StartupError(_in_short(stack, error)) from error
    finally:
        progress.finish()
    _greet(running)
    try:
        while not running.wait(timeout=0.5):
            pass
    except StartupError as error:
        print(f"dualpath up: {_in_short(stack, error)}", file=sys.stderr)
        return 1
    return 0


def check_config(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dualpath check-config",
        description="Read a configuration file and check it; nothing is started.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help="YAML file")
    file = parse(parser, argv).file
    validate(load(StackConfig, file=file, env=os.environ))
    print(f"{file}: ok")
    return 0


def config_docs(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dualpath config-docs", description="Print every setting as Markdown."
    )
    parse(parser, argv)
    print(docs(), end="")
    return 0


def config_schema(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dualpath config-schema",
        description="Print the JSON schema of the configuration file, for editors.",
    )
    parse(parser, argv)
    print(json.dumps(schema(), indent=1))
    return 0


def make_model(argv: list[str]) -> int:
    # A process of its own: this one never imports torch.
    return subprocess.call([sys.executable, "-m", "dualpath_sglang.testmodel", *argv])


def replay(argv: list[str]) -> int:
    code = importlib.import_module("benchmarks.replay.cli").main(argv)
    return int(code or 0)


def _stop_on_signals(stack: Stack) -> threading.Event:
    """SIGINT, SIGTERM and SIGHUP stop the stack; the second one at once.

    The handler only writes to a pipe: a lock taken in a handler could be held already by the
    very code it interrupted.
    """
    read, write = os.pipe()
    signalled = threading.Event()

    def listen() -> None:
        while os.read(read, 1):
            stack.request_stop(now=signalled.is_set())
            signalled.set()

    def tell(number: int, frame: FrameType | None) -> None:
        os.write(write, b"s")

    threading.Thread(target=listen, name="signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, tell)
    return signalled


def _in_short(stack: Stack, error: StartupError) -> str:
    """The log lines were shown when it happened; the end says once more what and where."""
    failure = stack.failure
    if failure is None:
        return error.message
    where = f"; see {failure.log}" if failure.log else ""
    cause = f"\nlikely cause: {failure.cause}" if failure.cause else ""
    return f"{failure.component} {failure.what}{where}{cause}"


def _greet(running: RunningStack) -> None:
    print(f"ready after {running.started_in_s:.1f} s", flush=True)
    if running.router_url:
        print(f"router:  {running.router_url}", flush=True)
    for engine in running.engines:
        print(f"engine:  {engine.url}  {engine.name}", flush=True)
    print(f"status:  {running.run_dir / 'status.json'}", flush=True)
    print(f"logs:    {running.log_dir}", flush=True)
    print("Ctrl-C stops everything", flush=True)


if __name__ == "__main__":
    sys.exit(main())
