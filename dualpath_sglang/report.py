"""Each engine's own account of a request: where the KV of its prompt came from.

SGLang's `cached_tokens_details` on the decode engine is a copy of the prefill engine's
(`disaggregation/decode.py`, `_commit_transfer_to_req`), so the decode side is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from dualpath_sglang import sglang_api as api
from dualpath_sglang.contract.report import TurnReport
from dualpath_sglang.hooks import Hook, guarded
from dualpath_sglang.secondpath.requests import LoadReport
from dualpath_sglang.secondpath.running import count_received, load_report
from dualpath_sglang.sglang_types import DecodeRequest, OutputStreamer, Req


def _keep(result: Any, *args: Any, **kwargs: Any) -> Any:
    return result


@guarded("the report of a decode request", _keep)
def after_decode_commit(result: Any, queue: object, decode_req: DecodeRequest) -> Any:
    """The prompt's KV is complete on D: its own tiers, and the rest came from P."""
    device, host, storage = api.decode_prefix(decode_req)
    received = api.prompt_tokens(decode_req.req) - device - host - storage
    load = load_report(decode_req.req)
    count_received(received)
    # What was staged for this request counts as host memory to SGLang by now.
    staged = min(host, load.store_tokens)
    report = TurnReport(
        "decode", device, host - staged, storage + staged, received=max(0, received)
    )
    api.attach_report(decode_req.req, _with_load(report, load))
    return result


def around_stream_output(
    original: Any, streamer: OutputStreamer, reqs: Sequence[Req], *args: Any, **kw: Any
) -> Any:
    """Before a prefill engine's answer leaves, add what its forward pass found cached."""
    _add_prefill_reports(streamer, reqs)
    return original(streamer, reqs, *args, **kw)


@guarded("the report of a prefill request", lambda *_: None)
def _add_prefill_reports(streamer: OutputStreamer, reqs: Sequence[Req]) -> None:
    if str(streamer.disaggregation_mode.value) != "prefill":
        return
    for req in reqs:
        if api.has_report(req):
            continue
        device, host, storage = api.cached_by_tier(req)
        computed = max(0, api.prompt_tokens(req) - device - host - storage)
        load = load_report(req)
        peer = min(host, load.peer_tokens)
        report = TurnReport("prefill", device, host - peer, storage, peer, computed=computed)
        api.attach_report(req, _with_load(report, load))


def _with_load(report: TurnReport, load: LoadReport) -> TurnReport:
    return replace(
        report,
        store_bytes=load.store_bytes,
        peer_bytes=load.peer_bytes,
        plan_id=load.plan_id,
        split_pages=load.split_pages,
        load_s=load.load_s,
        fallback=load.fallback,
    )


REPORT_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.disaggregation.decode.DecodeTransferQueue._commit_transfer_to_req",
        "after",
        after_decode_commit,
        "D's own tiers: its answer copies P's figures",
        ("decode_req",),
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.output_streamer."
        "SchedulerOutputStreamer.stream_output",
        "around",
        around_stream_output,
        "P's report leaves with its answer",
        ("reqs",),
    ),
)
