"""The second path of this process, for those who only ask what it did. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualpath_sglang.secondpath.requests import LoadReport
from dualpath_sglang.sglang_types import Req

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.engine import SecondPath

_running: SecondPath | None = None


def set_running(path: SecondPath) -> None:
    global _running
    _running = path


def load_report(req: Req) -> LoadReport:
    """What a request's load brought in, by source; zeros without a load or a second path."""
    return _running.report_for(req) if _running is not None else LoadReport()


def count_received(tokens: int) -> None:
    """KV of `tokens` prompt tokens came from the prefill engine (decode engines)."""
    if _running is not None and tokens > 0:
        pool = _running.pool
        amount = tokens * pool.bytes_per_page // pool.page_size
        _running.meter.moved("prefill_to_decode", tokens, amount)
