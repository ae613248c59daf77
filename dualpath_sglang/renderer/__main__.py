"""`python -m dualpath_sglang.renderer --model-path P --socket S`: prints READY when it listens."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.renderer.model_files import load_model_files
from dualpath_sglang.renderer.server import LineServer
from dualpath_sglang.renderer.service import RenderService


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dualpath_sglang.renderer",
        description="Turns text and chat messages into token ids, over a unix socket.",
    )
    parser.add_argument("--model-path", type=Path, required=True, help="folder of the model")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to listen on")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(options.model_path, options.socket))
    except StartupError as err:
        print(f"renderer: {err.message}", file=sys.stderr)
        return 1
    return 0


async def _run(model_path: Path, socket_path: Path) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    service = RenderService(load_model_files(model_path))
    server = LineServer(socket_path, service.answer)
    await server.start()
    try:
        print("READY", flush=True)
        await stopped.wait()
    finally:
        await server.stop()


if __name__ == "__main__":
    sys.exit(main())
