"""The router's account of its engines against engines whose every request is known.

The model keeps each engine's requests; reports are made of them at any time and delivered later.
What the fleet must show for an engine is worked out anew from all that the router has heard: the
last delivered report, without what it knows to be over, and what no report has had yet.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest
from clusters import KV_BYTES, Engine, fleet_of, pd, report_of, turn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent_runtime.scheduling.fleet import Fleet
from agent_runtime.scheduling.placement import Placed
from agent_runtime.scheduling.profile import Profile
from agent_runtime.scheduling.view import Rank, Side, TurnView
from dualpath_sglang.contract.engine_report import EngineReport, Rate, Unfinished
from dualpath_sglang.contract.ids import EngineId, RequestId

P = [Rank(EngineId("p0")), Rank(EngineId("p1"))]
D = [Rank(EngineId("d0")), Rank(EngineId("d1"))]
ROOM = 10**6


@dataclass
class Model:
    """One engine. has: its unfinished requests. ended: since the report before."""

    engine: Engine
    has: dict[RequestId, Unfinished] = field(default_factory=dict)
    ended: list[RequestId] = field(default_factory=list)
    number: int = 0

    def report(self) -> EngineReport:
        self.number += 1
        rows = tuple(self.has.values())
        shown = replace(
            self.engine,
            seq=len(rows),
            tok=sum(row.tokens for row in rows),
            store_queue=sum(row.store for row in rows),
            peer_queue=sum(row.peer for row in rows),
            requests=rows,
        )
        made = report_of(shown, self.number)
        finished, self.ended = tuple(self.ended), []
        return _with_finished(made, finished)


def _with_finished(report: EngineReport, finished: tuple[RequestId, ...]) -> EngineReport:
    values = {name: getattr(report, name) for name in report.__struct_fields__}
    return EngineReport(**{**values, "finished": finished})


@dataclass
class Knowledge:
    """What the router has heard of one engine."""

    placed: dict[RequestId, Unfinished] = field(default_factory=dict)
    last: dict[RequestId, Unfinished] = field(default_factory=dict)
    ever_seen: set[RequestId] = field(default_factory=set)
    over: set[RequestId] = field(default_factory=set)
    given_up: set[RequestId] = field(default_factory=set)
    loaded: set[RequestId] = field(default_factory=set)

    def rows(self) -> list[Unfinished]:
        shown = [row for id, row in self.last.items() if id not in self.over]
        unheard = self.placed.keys() - self.ever_seen - self.over - self.given_up
        shown += [self.placed[id] for id in unheard]
        return [Unfinished(row.id, row.tokens) if row.id in self.loaded else row for row in shown]


@settings(max_examples=60, stateful_step_count=50)
class ReportsAndDeltas(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        engines = pd(2, 2, loadable=ROOM, free=ROOM)
        self.fleet: Fleet = fleet_of(*engines, reports=False)
        self.models = {engine.rank: Model(engine) for engine in engines}
        self.knows: defaultdict[Rank, Knowledge] = defaultdict(Knowledge)
        self.on_the_way: dict[Rank, list[EngineReport]] = {rank: [] for rank in self.models}
        self.turns: dict[RequestId, tuple[Rank, Rank]] = {}
        self.to_arrive: list[tuple[Rank, Unfinished]] = []
        self.count = 0

    @rule(p=st.sampled_from(P), d=st.sampled_from(D), k=st.integers(0, 10), n=st.integers(0, 10))
    def place(self, p: Rank, d: Rank, k: int, n: int) -> None:
        self.count += 1
        k = min(k, n)
        view = turn(self.count, n, 1000 + self.count)
        made = Placed(
            view.id, p.engine, d.engine, k, "", n,
            prefill_reads=n - k, decode_reads=k, pulls=k, computes=view.prompt_tokens - n,
        )  # fmt: skip
        self.fleet.place(made, view)
        self.turns[view.id] = (p, d)
        tokens = view.prompt_tokens
        halves = {
            p: Unfinished(view.id, tokens, store=n - k, peer=k, compute=tokens - n),
            d: Unfinished(view.id, tokens, store=k),
        }
        for rank, row in halves.items():
            self.knows[rank].placed[view.id] = row
            self.to_arrive.append((rank, row))

    @precondition(lambda self: self.to_arrive)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        rank, row = self.to_arrive.pop(data.draw(st.integers(0, len(self.to_arrive) - 1)))
        if row.id not in self.knows[rank].given_up:
            self.models[rank].has[row.id] = row

    @rule(rank=st.sampled_from(P + D), tokens=st.integers(0, 99))
    def somebody_elses_request_arrives(self, rank: Rank, tokens: int) -> None:
        self.count += 1
        foreign = RequestId(f"f{self.count}")
        self.models[rank].has[foreign] = Unfinished(foreign, tokens, store=tokens)

    @rule(rank=st.sampled_from(P + D), part=st.floats(0, 1))
    def work(self, rank: Rank, part: float) -> None:
        has = self.models[rank].has
        for id, row in has.items():
            left = [int(part * amount) for amount in (row.store, row.peer, row.compute)]
            has[id] = Unfinished(id, row.tokens, *left)

    @rule(rank=st.sampled_from(P + D), data=st.data())
    def finish(self, rank: Rank, data: st.DataObject) -> None:
        model = self.models[rank]
        if model.has:
            id = data.draw(st.sampled_from(sorted(model.has)))
            del model.has[id]
            model.ended.append(id)

    @rule(rank=st.sampled_from(P + D))
    def make_a_report(self, rank: Rank) -> None:
        self.on_the_way[rank].append(self.models[rank].report())

    @rule(rank=st.sampled_from(P + D))
    def deliver(self, rank: Rank) -> None:
        if self.on_the_way[rank]:
            self._deliver(rank, self.on_the_way[rank].pop(0))

    @rule(data=st.data())
    def hear_the_first_token(self, data: st.DataObject) -> None:
        """P has ended its half and D has read all that it had to."""
        ready = [t for t, (p, d) in self.turns.items() if self._done(t, p) and self._read(t, d)]
        if ready:
            id = data.draw(st.sampled_from(ready))
            p, d = self.turns[id]
            self.fleet.loaded(id)
            self.knows[p].over.add(id)
            self.knows[d].loaded.add(id)

    @rule(data=st.data())
    def hear_the_end(self, data: st.DataObject) -> None:
        ready = [t for t, (p, d) in self.turns.items() if self._done(t, p) and self._done(t, d)]
        if ready:
            id = data.draw(st.sampled_from(ready))
            self.fleet.end(id, clean=True)
            self.fleet.end(id, clean=False)
            for rank in self.turns.pop(id):
                self.knows[rank].over.add(id)

    @rule(data=st.data())
    def give_a_turn_up(self, data: st.DataObject) -> None:
        """Its engines may have it for a while, or get it yet."""
        if self.turns:
            id = data.draw(st.sampled_from(sorted(self.turns)))
            self.fleet.end(id, clean=False)
            for rank in self.turns.pop(id):
                self.knows[rank].given_up.add(id)

    @invariant()
    def every_row_is_what_the_router_knows(self) -> None:
        view = self.fleet.view(max_inflight=1)
        assert view.inflight == len(self.turns)
        for side in (view.prefill, view.decode):
            for rank, i in side.index.items():
                _check(side, i, self.knows[rank].rows(), prefill=side is view.prefill)
                placed_here = sum(rank in ranks for ranks in self.turns.values())
                assert self.fleet.turns_on(rank) == placed_here

    def teardown(self) -> None:
        """When all is told, every row is the engine's truth."""
        for id in list(self.turns):
            self.fleet.end(id, clean=False)
        for rank, model in self.models.items():
            for report in (*self.on_the_way[rank], model.report()):
                self._deliver(rank, report)
        view = self.fleet.view(max_inflight=1)
        for side in (view.prefill, view.decode):
            for rank, i in side.index.items():
                known_over = self.knows[rank].over
                has = [row for id, row in self.models[rank].has.items() if id not in known_over]
                _check(side, i, has, prefill=side is view.prefill)
                assert side.loadable[i] == side.free[i] == ROOM

    def _deliver(self, rank: Rank, report: EngineReport) -> None:
        group = self.fleet.report(rank, report, 0.0)
        assert group is not None
        assert self.fleet.report(rank, report, 0.0) is None, "the same report again says nothing"
        knows = self.knows[rank]
        knows.last = {row.id: row for row in report.requests}
        knows.ever_seen |= knows.last.keys() | set(report.finished)

    def _done(self, turn_id: RequestId, rank: Rank) -> bool:
        waits = any(rank == r and row.id == turn_id for r, row in self.to_arrive)
        return not waits and turn_id not in self.models[rank].has

    def _read(self, turn_id: RequestId, rank: Rank) -> bool:
        has = self.models[rank].has.get(turn_id)
        return self._done(turn_id, rank) or (has is not None and has.store == 0)


def _check(side: Side, i: int, rows: list[Unfinished], *, prefill: bool) -> None:
    assert side.seq[i] == len(rows)
    assert side.tok[i] == sum(row.tokens for row in rows)
    assert side.store_queue[i] == sum(row.store for row in rows)
    assert side.work[i] == sum(row.compute for row in rows)
    if prefill:
        assert side.peer_queue[i] == sum(row.peer for row in rows)  # type: ignore[attr-defined]


TestReportsAndDeltas = ReportsAndDeltas.TestCase


def placed(view: TurnView, **more: int) -> Placed:
    return Placed(view.id, P[0].engine, D[0].engine, 4, "", 10, **more)


def test_a_reported_turn_gives_its_room_back_with_the_next_report() -> None:
    fleet = fleet_of(*pd(1, 1, loadable=1000, free=5000))
    view = fleet.view(max_inflight=9)
    given_turn = turn(0, 10, 2000, output_tokens=100)
    fleet.place(placed(given_turn, prefill_reads=96, pulls=64, decode_reads=64), given_turn)
    assert (view.prefill.loadable[0], view.decode.loadable[0]) == (840, 936)
    assert view.decode.free[0] == 2900
    row = (Unfinished(given_turn.id, 2000),)
    reported = Engine("d0", "decode", loadable=936, free=2900, seq=1, tok=2000, requests=row)
    fleet.report(D[0], report_of(reported, 1), 0.0)
    assert (view.decode.free[0], view.decode.tok[0]) == (2900, 2000), "counted once"
    fleet.end(given_turn.id, clean=True)
    assert (view.decode.free[0], view.decode.tok[0]) == (2900, 0), "room waits for the report"
    assert view.prefill.loadable[0] == 1000, "never reported: given back at once"


def test_a_turn_that_came_and_went_between_two_reports_is_over() -> None:
    """P has ended it, the router has not heard of its first token yet."""
    fleet = fleet_of(*pd(1, 1))
    view = turn(0, 10, 2000)
    fleet.place(placed(view, prefill_reads=96, pulls=64), view)
    fleet.report(P[0], _with_finished(report_of(Engine("p0", "prefill"), 1), (view.id,)), 0.0)
    side = fleet.view(max_inflight=1).prefill
    assert (side.seq[0], side.tok[0], side.store_queue[0], side.peer_queue[0]) == (0, 0, 0, 0)
    assert side.loadable[0] == report_of(Engine("p0", "prefill")).memory.loadable


def test_a_report_made_before_the_first_token_does_not_bring_its_reads_back() -> None:
    fleet = fleet_of(*pd(1, 1))
    view = turn(0, 10, 2000)
    fleet.place(placed(view, decode_reads=64), view)
    fleet.loaded(view.id)
    row = (Unfinished(view.id, 2000, store=64),)
    older = Engine("d0", "decode", seq=1, tok=2000, store_queue=64, requests=row)
    fleet.report(D[0], report_of(older, 1), 0.0)
    side = fleet.view(max_inflight=1).decode
    assert (side.seq[0], side.tok[0], side.store_queue[0]) == (1, 2000, 0)


def test_room_without_reports_has_no_end_and_rates_are_the_profiles() -> None:
    profile = Profile(store_bytes_per_s=7e6, compute_tokens_per_s=11.0)
    side = fleet_of(*pd(1, 1), profile=profile, reports=False).view(max_inflight=1).prefill
    assert side.loadable[0] == side.free[0] == side.pool[0] == float("inf")
    assert (side.store_rate[0], side.compute_rate[0]) == (7e6 / KV_BYTES, 11.0)


def test_measured_rates_count_and_an_engine_that_goes_away_takes_them_along() -> None:
    fleet = fleet_of(*pd(1, 1, store_rate=300.0, peer_rate=70.0, tok=5, store_queue=9))
    side = fleet.view(max_inflight=1).prefill
    assert (side.store_rate[0], side.peer_rate[0], side.tok[0]) == (300.0, 70.0, 5)
    view = turn(0, 10, 2000)
    fleet.place(placed(view, prefill_reads=96), view)
    fleet.set_up(P[0], False)
    default = Profile().store_bytes_per_s / KV_BYTES
    assert (side.store_rate[0], side.tok[0], side.store_queue[0]) == (default, 2000, 96)
    assert side.reported_at[0] == float("inf")
    fleet.end(view.id, clean=False)
    assert (side.seq[0], side.tok[0], side.store_queue[0]) == (0, 0, 0)


def test_a_restarted_engine_counts_from_the_start_again() -> None:
    fleet = fleet_of(*pd(1, 1, tok=5))
    values = report_of(Engine("p0", "prefill", tok=7))
    again = {name: getattr(values, name) for name in values.__struct_fields__}
    assert fleet.report(P[0], values, 1.0) is None
    assert fleet.report(P[0], EngineReport(**{**again, "boot_nonce": "new"}), 1.0) is not None
    assert fleet.view(max_inflight=1).prefill.tok[0] == 7


def test_views_are_read_only_and_of_now() -> None:
    fleet = fleet_of(*pd(1, 1))
    view = fleet.view(max_inflight=1)
    for side in (view.prefill, view.decode):
        with pytest.raises(ValueError, match="read-only"):
            side.tok[0] = 1.0
    fleet.set_up(P[0], False)
    assert not view.prefill.up[0]


def test_a_group_is_the_ranks_of_one_role_on_one_node() -> None:
    engines = [
        Engine("p", "prefill", node="a", dp=0),
        Engine("p", "prefill", node="a", dp=1),
        Engine("q", "prefill", node="b"),
        Engine("d", "decode", node="a"),
        Engine("e", "decode"),
        Engine("f", "decode"),
    ]
    view = fleet_of(*engines).view(max_inflight=1)
    assert view.prefill.group[0] == view.prefill.group[1] != view.prefill.group[2]
    assert view.prefill.node[0] == view.decode.node[0]
    assert len({*view.prefill.group.tolist(), *view.decode.group.tolist()}) == 5
    assert view.decode.node[1] != view.decode.node[2]


def test_rates_of_nothing_are_the_least_there_is() -> None:
    fleet = fleet_of(*pd(1, 1))
    report = report_of(Engine("p0", "prefill"), 5)
    values = {name: getattr(report, name) for name in report.__struct_fields__}
    fleet.report(P[0], EngineReport(**{**values, "store": Rate(0.0, 1.0, 3)}), 0.0)
    assert fleet.view(max_inflight=1).prefill.store_rate[0] == 1.0
