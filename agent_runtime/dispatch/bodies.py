"""The body of SGLang's POST /generate.

Both halves of a turn get the same bytes: SGLang pairs them by host, port and room, and the plan
for the two engines (`kv_hints`) is one message.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from agent_runtime.config import DEFAULT_BOOTSTRAP_PORT, EngineEndpoint
from agent_runtime.dispatch.turn import Job
from dualpath_sglang.contract.ids import BootstrapRoom, RequestId


@dataclass(frozen=True)
class Pairing:
    """Where the decode engine meets the prefill engine for this one turn."""

    host: str
    port: int
    room: BootstrapRoom


def pairing_with(prefill: EngineEndpoint, rng: random.Random) -> Pairing:
    """A fresh room at `prefill`'s bootstrap server."""
    return Pairing(
        host=prefill.bootstrap_host or urlsplit(prefill.url).hostname or "",
        port=prefill.bootstrap_port or DEFAULT_BOOTSTRAP_PORT,
        room=BootstrapRoom(rng.getrandbits(63)),
    )


def new_request_id(rng: random.Random) -> RequestId:
    return RequestId(f"{rng.getrandbits(128):032x}")


def generate_body(job: Job, pairing: Pairing | None) -> bytes:
    """`pairing` null: one plain engine does both halves."""
    body = {
        "rid": job.id,
        "input_ids": job.prompt.tolist(),
        "sampling_params": dict(job.sampling),
        "stream": True,
    }
    if pairing is not None:
        body |= {
            "bootstrap_host": pairing.host,
            "bootstrap_port": pairing.port,
            "bootstrap_room": pairing.room,
        }
        if job.kv_hints is not None:
            body["kv_hints"] = job.kv_hints
    return orjson.dumps(body)
