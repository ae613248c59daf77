"""What the engines of the benchmark would report: the turns that are on them, and others' load.

Making a report is the engine's work and is not timed; reading one off the wire is the router's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from agent_runtime.config import Role
from agent_runtime.scheduling.placement import Placed, ranks_of
from agent_runtime.scheduling.view import EngineFacts, Rank, TurnView
from dualpath_sglang.contract.engine_report import EngineReport, Memory, Rate, Unfinished, encode
from dualpath_sglang.contract.ids import EngineId, RequestId

GPUS_PER_NODE = 8
KV_BYTES = 40_000
"""Of DeepSeek-V3.2, the paper's model (656 bytes a layer, 61 layers)."""
POOL = 2_000_000
"""Tokens of a device pool."""
LOAD_LIMIT = 1_000_000
STORE_BYTES_PER_S = 50e9 / GPUS_PER_NODE
PEER_BYTES_PER_S = 40e9
COMPUTE_TOKENS_PER_S = 8_000.0


@dataclass
class Engine:
    """running: the router's turns that it has not ended. others: KV that no turn of the benchmark
    accounts for."""

    rank: Rank
    role: Role
    node: str
    speed: float
    others: int
    running: dict[RequestId, Unfinished] = field(default_factory=dict)
    finished: list[RequestId] = field(default_factory=list)
    number: int = 0

    def facts(self) -> EngineFacts:
        return EngineFacts(self.rank, self.role, self.node)

    def report(self) -> bytes:
        self.number += 1
        rows = tuple(self.running.values())
        tokens = sum(row.tokens for row in rows)
        store, peer = sum(row.store for row in rows), sum(row.peer for row in rows)
        made = EngineReport(
            boot_nonce="boot",
            number=self.number,
            age_s=0.0,
            role="prefill" if self.role == "prefill" else "decode",
            dp_rank=self.rank.dp,
            node=self.node,
            seq=len(rows),
            tok=tokens,
            store_queue=store,
            peer_queue=peer,
            store=Rate(STORE_BYTES_PER_S * self.speed, 0.1, 100),
            peer=Rate(PEER_BYTES_PER_S * self.speed, 0.1, 100),
            compute=Rate(COMPUTE_TOKENS_PER_S * self.speed, 0.1, 100),
            memory=Memory(
                device_free=max(0, POOL - self.others - tokens),
                device_pool=POOL,
                host_free=0,
                host_pool=4 * POOL,
                loadable=max(0, LOAD_LIMIT - store - peer),
                load_limit=LOAD_LIMIT,
            ),
            requests=rows,
            finished=tuple(self.finished),
        )
        self.finished.clear()
        # What was there for a whole report is loaded and computed by the next.
        self.running = {id: Unfinished(id, row.tokens) for id, row in self.running.items()}
        return encode(made)


class Engines:
    """prefill + decode engines, `GPUS_PER_NODE` to a node, of slightly different speeds."""

    def __init__(self, prefill: int, decode: int, rng: random.Random) -> None:
        counts: list[tuple[Role, int]] = [("prefill", prefill), ("decode", decode)]
        self.all = [_engine(role, i, rng) for role, count in counts for i in range(count)]
        self._by_rank = {engine.rank: engine for engine in self.all}

    def take(self, placed: Placed, turn: TurnView) -> None:
        p, d = ranks_of(placed)
        tokens, compute = turn.prompt_tokens, placed.computes
        self._by_rank[p].running[turn.id] = Unfinished(
            turn.id, tokens, placed.prefill_reads, placed.pulls, compute
        )
        self._by_rank[d].running[turn.id] = Unfinished(turn.id, tokens, placed.decode_reads)

    def finish(self, rank: Rank, turn: RequestId) -> None:
        engine = self._by_rank[rank]
        del engine.running[turn]
        engine.finished.append(turn)


def _engine(role: Role, i: int, rng: random.Random) -> Engine:
    node, dp = divmod(i, GPUS_PER_NODE)
    return Engine(
        rank=Rank(EngineId(f"{role}-{node}"), dp),
        role=role,
        node=f"{role}-{node}",
        speed=rng.uniform(0.8, 1.2),
        others=rng.randrange(POOL // 4),
    )
