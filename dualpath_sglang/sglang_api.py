"""What this plugin knows of SGLang's objects. Nothing outside this file and the hook tables
reads their attributes, so a new SGLang version is met here.

Functions take the live objects and give back plain values; none changes anything unless its name
says so.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from dualpath_sglang.contract.report import META_KEY, TurnReport
from dualpath_sglang.sglang_types import DecodeRequest, Req, Scheduler


def version() -> str:
    import sglang

    return str(sglang.__version__)


def role_of(scheduler: Scheduler) -> str:
    """prefill, decode or null (one engine that does both)."""
    return str(scheduler.disaggregation_mode.value)


def settings_of(scheduler: Scheduler) -> dict[str, Any]:
    """By field name, as SGLang resolved them: `scheduler.server_args` keeps what was passed."""
    return scheduler.server_args.resolved_dict()


def reads_store(scheduler: Scheduler) -> bool:
    return bool(scheduler.server_args.hicache_storage_backend)


def compile_page_hash() -> None:
    """SGLang compiles the hash of its page keys when it first needs one: seconds within a request,
    and every later prefetch fails where that fails (`mem_cache/cpp_utils/native_hash.py`).

    Changes PATH: torch looks for ninja there alone, pip puts it beside the interpreter.
    Raises RuntimeError.
    """
    from sglang.srt.mem_cache.utils import get_hash_str

    beside = os.path.dirname(sys.executable)
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), beside))
    get_hash_str([0])


def prompt_tokens(req: Req) -> int:
    return len(req.origin_input_ids)


def cached_by_tier(req: Req) -> tuple[int, int, int]:
    """Tokens that this engine's prefill took from device, host and store; valid after its first
    forward pass (`ScheduleBatch.prepare_for_extend`)."""
    return req.cached_tokens_device, req.cached_tokens_host, req.cached_tokens_storage


def decode_prefix(decode_req: DecodeRequest) -> tuple[int, int, int]:
    """Tokens that a decode engine announced from device, host and store (`DecodePrefixMatch`)."""
    match = decode_req.prefix_match
    if match is None:
        return 0, 0, 0
    return match.l1_prefix_len, match.l2_host_hit_length, match.l3_storage_hit_length


def attach_report(req: Req, report: TurnReport) -> None:
    """Send a report with the request's next output. SGLang slices the list by output token and
    joins the pieces again, so the one entry arrives with the first token."""
    info = dict(req.customized_info or {})
    info[META_KEY] = [report.to_tree()]
    req.customized_info = info


def has_report(req: Req) -> bool:
    return META_KEY in (req.customized_info or {})
