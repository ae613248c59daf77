"""`dualpath up`: a stack, until a signal or the end of a component."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from agent_runtime.commands.flags import add_flags, stack_config
from agent_runtime.stack.progress import Progress
from agent_runtime.stack.stack import RunningStack, Stack
from dualpath_sglang.contract.errors import StartupError


def describe(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.usage = (
        "dualpath up [--config FILE] [--model PATH] [--cpu] [--prefill N] [--decode M] "
        "[--SETTING VALUE ...]"
    )
    parser.description = (
        "Start mooncake_master, a storage node, prefill and decode engines, the renderer and the "
        "router; Ctrl-C stops all of them."
    )
    parser.epilog = "example: dualpath up --model ./model --cpu --prefill 1 --decode 1"
    add_flags(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = stack_config(options, os.environ)
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
