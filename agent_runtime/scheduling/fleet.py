"""What the router knows of its engines: their last reports and what it has done since.

    report         the engine's row as the engine sees it, true when it was made
    placed         + this turn, until a report has it
    loaded, ended  - this turn, until a report has it no longer

So a row is what the engine would report now, and no turn counts twice. Room alone is on the safe
side: what a reported turn gives back counts from the next report on. Without reports (an engine
without the plugin) a row is made of the router's own turns, and room has no end.

No clock and no I/O here. One owner writes; policies see it through `view`, read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_runtime.config import Role, SplitPolicy
from agent_runtime.scheduling.columns import Account, Columns, Part, PrefillColumns
from agent_runtime.scheduling.placement import Placed, ranks_of
from agent_runtime.scheduling.profile import DEFAULT_PROFILE, Profile
from agent_runtime.scheduling.view import (
    START,
    ClusterView,
    Cursor,
    DecodeSide,
    EngineFacts,
    PlainSide,
    PrefillSide,
    Rank,
    TurnView,
)
from dualpath_sglang.contract.engine_report import EngineReport, Rate, Unfinished
from dualpath_sglang.contract.ids import RequestId

Row = tuple[Columns[Any], int]
MAX_OVER = 128
"""Ended turns of one engine that its reports have not been seen to be without."""


class Fleet:
    def __init__(self, engines: Sequence[EngineFacts], profile: Profile | None = None) -> None:
        """`engines` in configuration order."""
        self._profile = profile or DEFAULT_PROFILE
        self._nodes = {name: i for i, name in enumerate(dict.fromkeys(map(_node, engines)))}
        self._groups: dict[tuple[Role, str], int] = {}
        for engine in engines:
            self._groups.setdefault((engine.role, _node(engine)), len(self._groups))
        self._namespaces: dict[str, int] = {"": 0}
        self._mixed = False
        self._prefill = self._columns("prefill", PrefillColumns, PrefillSide, engines)
        self._decode = self._columns("decode", Columns, DecodeSide, engines)
        self._plain = self._columns("plain", Columns, PlainSide, engines)
        self._rows: dict[Rank, Row] = {
            rank: (columns, i)
            for columns in (self._prefill, self._decode, self._plain)
            for rank, i in columns.index.items()
        }
        self._turns: dict[RequestId, tuple[Row, Row]] = {}

    def __contains__(self, rank: Rank) -> bool:
        return rank in self._rows

    @property
    def inflight(self) -> int:
        return len(self._turns)

    def turns_on(self, rank: Rank) -> int:
        """Turns of this router that are placed there and have not ended."""
        columns, i = self._rows[rank]
        return columns.accounts[i].placed

    def reading_tokens(self, rank: Rank) -> int:
        columns, i = self._rows[rank]
        return int(columns.store_queue[i])

    def view(
        self,
        *,
        max_inflight: int,
        no_engine_wait_s: float = 0.0,
        cursor: Cursor = START,
        split_policy: SplitPolicy = "none",
        fetching: int | None = None,
    ) -> ClusterView:
        """As it is now. It changes with the fleet: for the pass that follows, not to keep."""
        return ClusterView(
            self._prefill.side,
            self._decode.side,
            self._plain.side,
            self._profile,
            len(self._turns),
            max_inflight,
            no_engine_wait_s,
            cursor,
            split_policy,
            fetching,
            self._namespaces,
            self._mixed,
        )

    def set_up(self, rank: Rank, up: bool) -> None:
        """An engine that goes away takes its reports with it."""
        columns, i = self._rows[rank]
        if columns.up[i] and not up:
            self._forget(columns, i)
        columns.up[i] = up

    def set_plans(self, rank: Rank, plans: bool, kv_bytes_per_token: int = 0) -> None:
        """Whether it takes plans, and the size of its KV (0: not known)."""
        columns, i = self._rows[rank]
        columns.plans[i] = plans
        if kv_bytes_per_token > 0:
            columns.accounts[i].kv_bytes = kv_bytes_per_token
            columns.set_rates(i, Rate(), Rate(), Rate())

    def set_namespace(self, rank: Rank, namespace: str) -> None:
        """Of its KV pages; empty: not known."""
        columns, i = self._rows[rank]
        number = self._namespaces.setdefault(namespace, len(self._namespaces))
        if columns.namespace[i] != number:
            columns.namespace[i] = number
            both = (self._prefill, self._decode)
            self._mixed = len({n for side in both for n in side.namespace.tolist()}) > 1

    def place(self, placed: Placed, turn: TurnView) -> None:
        """`placed` is of `turn`, which counts from now on until `end`."""
        first, second = (self._rows[rank] for rank in ranks_of(placed))
        tokens, computes = turn.prompt_tokens, placed.computes
        kv = tokens + turn.output_tokens
        if first is second:
            self._charge(placed.id, first, Part(1, tokens, computes, kv=kv))
        else:
            loads = placed.prefill_reads + placed.pulls
            p = Part(1, tokens, computes, placed.prefill_reads, placed.pulls, load=loads)
            d = Part(1, tokens, store=placed.decode_reads, load=placed.decode_reads, kv=kv)
            self._charge(placed.id, first, p)
            self._charge(placed.id, second, d)
        self._turns[placed.id] = (first, second)
        for columns, i in dict.fromkeys((first, second)):
            columns.accounts[i].placed += 1

    def loaded(self, turn: RequestId) -> None:
        """Its first token is here: P is done with it, and D has nothing left to load. Twice does
        no harm."""
        if turn not in self._turns:
            return
        first, second = self._turns[turn]
        if first is not second:
            _over(turn, first, clean=True)
        columns, i = second
        part = columns.accounts[i].turns.get(turn)
        if part is None or part.loaded:
            return
        read = Part(0, 0.0, part.work, part.store, load=part.load)
        columns.add(i, read, -1)
        if not part.seen:
            columns.take_room(i, read, -1)
        part.work = part.store = part.load = 0.0
        part.loaded = True

    def end(self, turn: RequestId, *, clean: bool) -> None:
        """It is over, however it ended. Twice does no harm.

        clean: its engines have ended it. Otherwise they may work on for a while, and those that
        report are taken at their word.
        """
        if (rows := self._turns.pop(turn, None)) is None:
            return
        for row in dict.fromkeys(rows):
            columns, i = row
            columns.accounts[i].placed -= 1
            _over(turn, row, clean=clean)

    def report(self, rank: Rank, report: EngineReport, now: float) -> int | None:
        """The number of the engine's group, whose fetch this is; null: a report that is older than
        the last."""
        columns, i = self._rows[rank]
        account = columns.accounts[i]
        if report.boot_nonce == account.boot_nonce and report.number <= account.number:
            return None
        account.boot_nonce, account.number = report.boot_nonce, report.number
        columns.set_base(i, report)
        columns.reported_at[i] = now - report.age_s
        columns.set_rates(i, report.store, report.peer, report.compute)
        rows = {row.id: row for row in report.requests}
        finished = set(report.finished)
        for turn, part in list(account.turns.items()):
            if (row := rows.get(turn)) is not None:
                _see(columns, i, part, row)
            elif part.seen or turn in finished:
                del account.turns[turn]  # over there; the router will hear of it
            else:
                columns.add(i, part)
                columns.take_room(i, part)
        for turn, seen in list(account.over.items()):
            if (row := rows.get(turn)) is not None:
                columns.add(i, _part(row), -1)
                account.over[turn] = True
            elif seen or turn in finished:
                del account.over[turn]
        return int(columns.group[i])

    def _columns(
        self,
        role: Role,
        make: type[Columns[Any]],
        kind: type[Any],
        engines: Sequence[EngineFacts],
    ) -> Columns[Any]:
        mine = [engine for engine in engines if engine.role == role]
        groups = [self._groups[role, _node(engine)] for engine in mine]
        nodes = [self._nodes[_node(engine)] for engine in mine]
        return make(kind, mine, groups, nodes, self._profile)

    def _charge(self, turn: RequestId, row: Row, part: Part) -> None:
        columns, i = row
        columns.accounts[i].turns[turn] = part
        columns.add(i, part)
        columns.take_room(i, part)

    def _forget(self, columns: Columns[Any], i: int) -> None:
        """The engine's row as it would be if it had never reported."""
        account = columns.accounts[i]
        columns.accounts[i] = Account(account.placed, account.turns, kv_bytes=account.kv_bytes)
        columns.set_base(i, None)
        columns.set_rates(i, Rate(), Rate(), Rate())
        for part in account.turns.values():
            part.seen = False
            columns.add(i, part)
            columns.take_room(i, part)


def _see(columns: Columns[Any], i: int, part: Part, row: Unfinished) -> None:
    """The report that is now the base has this turn; from here on its amounts count."""
    part.seen = True
    part.tok, part.work, part.store, part.peer = row.tokens, row.compute, row.store, row.peer
    if part.loaded:  # after the report was made
        columns.add(i, Part(0, 0.0, part.work, part.store, part.peer), -1)
        part.work = part.store = part.peer = 0.0


def _over(turn: RequestId, row: Row, *, clean: bool) -> None:
    columns, i = row
    account = columns.accounts[i]
    part = account.turns.pop(turn, None)
    if part is None or (part.seen and not clean):
        return
    columns.add(i, part, -1)
    if not part.seen:
        columns.take_room(i, part, -1)
    if clean:
        # A report that was made before the turn's end may still come.
        account.over[turn] = part.seen
        if len(account.over) > MAX_OVER:
            del account.over[next(iter(account.over))]


def _part(row: Unfinished) -> Part:
    return Part(1, row.tokens, row.compute, row.store, row.peer)


def _node(engine: EngineFacts) -> str:
    return engine.node or f"\0{engine.rank.engine}"
