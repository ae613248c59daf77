"""What `dualpath doctor` asks of an engine, and what the engine answers.

    POST /set_internal_state {"server_args": {"dualpath_probe {...}": 1}}     an order
    GET  /server_info -> internal_states[0]["dualpath_probes"][id]            its result, later

SGLang brings that request to the scheduler thread but lets only numbers be values, so an
order travels as the name of a setting that does not exist. A probe moves one page into the
engine's scratch page, a page of its host pool that nobody else ever gets, and hashes what came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from dualpath_sglang.contract.errors import EngineFailure

SETTING = "dualpath_probe "
"""Names of orders begin with it."""
PROBES_KEY = "dualpath_probes"
PROBE_DEADLINE_S = 8.0
"""A probe that is not over by then has failed; what it waits for may go on for longer."""
HOLD_S = 10.0
"""How long a decode engine keeps the bytes for prefill engines that nobody releases."""

Source = Literal["describe", "store", "seed", "peer", "release"]
State = Literal["running", "done", "failed"]


class ProbeOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """id: unique. run: the doctor's, so that two do not share a scratch page. source: describe (no
    bytes: what this engine is), store (read the page `name`), seed (make the bytes of the seed
    `name`), peer (pull page `slot` of the engine with the export server `peer`, host:port), release
    (the bytes are needed no longer)."""

    id: str
    run: str
    source: Source
    name: str = ""
    peer: str = ""
    slot: int = 0

    def to_settings(self) -> dict[str, int]:
        """The `server_args` of the request."""
        return {SETTING + msgspec.json.encode(self).decode(): 1}


class ProbeResult(Struct, frozen=True, forbid_unknown_fields=True):
    """step: what failed: busy, engine, store, content, connect or transfer. sums: SHA-256 of the
    page's K and, where it is apart, V. slot: number of the scratch page. facts: of `describe`."""

    id: str
    state: State
    step: str = ""
    error: str = ""
    sums: tuple[str, ...] = ()
    slot: int = -1
    seconds: float = 0.0
    facts: Mapping[str, Any] = {}

    def to_tree(self) -> dict[str, Any]:
        """JSON and msgpack values only."""
        tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return tree


def order_from(setting: str) -> ProbeOrder:
    """Of a name that begins with `SETTING`. Raises ValueError."""
    return msgspec.json.decode(setting.removeprefix(SETTING), type=ProbeOrder)


def result_from(server_info: Mapping[str, Any], probe_id: str) -> ProbeResult | None:
    """The result in an engine's /server_info; None: not there. Raises EngineFailure."""
    states = server_info.get("internal_states")
    for state in states if isinstance(states, list) else ():
        probes = state.get(PROBES_KEY) if isinstance(state, Mapping) else None
        tree = probes.get(probe_id) if isinstance(probes, Mapping) else None
        if tree is None:
            continue
        try:
            return msgspec.convert(tree, ProbeResult)
        except msgspec.ValidationError as error:
            raise EngineFailure(f"the result of a probe makes no sense: {error}") from error
    return None


def seeded_bytes(seed: str, count: int) -> bytes:
    """`count` bytes that look random and are the same everywhere (SHAKE-256)."""
    return hashlib.shake_256(seed.encode()).digest(count)


def seeded_parts(seed: str, parts: int, part_bytes: int) -> list[bytes]:
    """A page of `parts` objects, in the order of `KeyLayout.suffixes`."""
    whole = seeded_bytes(seed, parts * part_bytes)
    return [whole[i * part_bytes : (i + 1) * part_bytes] for i in range(parts)]


def sum_of(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()
