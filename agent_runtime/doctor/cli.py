"""`dualpath doctor`: what works in a running stack, hop by hop, and what does not."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from agent_runtime.config import StackConfig
from agent_runtime.dispatch.engine_client import new_http
from agent_runtime.doctor.examine import Examination
from agent_runtime.doctor.places import from_router, from_run_dir
from agent_runtime.doctor.report import Report
from dualpath_sglang.contract.errors import DualPathError


def describe(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = (
        "Examine a running stack: which components answer, which hooks are live, and whether a "
        "page of random bytes gets from the store to each engine and from each decode engine to "
        "each prefill engine. The page has a key of its own and is removed; no cache is touched "
        "or flushed. Exit code 0: all is fine, 1: something is broken, 2: cannot run."
    )
    where = parser.add_mutually_exclusive_group()
    default = StackConfig().run_dir
    where.add_argument(
        "--run-dir", default=default, metavar="DIR", help=f"of `dualpath up` (default: {default})"
    )
    where.add_argument("--router", default="", metavar="URL", help="of a stack elsewhere")
    parser.add_argument(
        "--store-admin", default="", metavar="URL", help="metrics port of the store's master"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """0: every hop works. 1: one is broken. 2: it could not be found out."""
    try:
        report = asyncio.run(examined(options))
    except DualPathError as error:
        if not options.json:
            raise
        report = Report(cannot_run=error.message)
    print(json.dumps(report.to_tree(), indent=1) if options.json else report.text())
    return report.exit_code


async def examined(options: argparse.Namespace) -> Report:
    """Raises ConfigError and StartupError where there is nothing to examine."""
    async with new_http() as http:
        if options.router:
            places = await from_router(http, options.router)
        else:
            places = from_run_dir(Path(options.run_dir))
        if options.store_admin:
            places = dataclasses.replace(places, store_admin_url=options.store_admin)
        return await Examination(http, places).run()
