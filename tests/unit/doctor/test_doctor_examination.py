"""The whole examination against stub engines: what is broken is named, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import aiohttp
import pytest
from doctor_world import HOOK, StubEngine, StubObject, master_app, served, world

from agent_runtime.doctor import door
from agent_runtime.doctor.examine import Examination
from agent_runtime.doctor.places import Part, Places
from agent_runtime.doctor.report import Hop, Report
from agent_runtime.doctor.store_object import Spec


@pytest.fixture
def p() -> StubEngine:
    return StubEngine("prefill-0", "prefill")


@pytest.fixture
def d() -> StubEngine:
    return StubEngine("decode-0", "decode", exports=("10.0.0.7:1",))


class Objects:
    """Makes stub objects and keeps them."""

    def __init__(self, **faults: Any) -> None:
        self.made: list[StubObject] = []
        self._faults = faults

    def __call__(self, spec: Spec) -> StubObject:
        self.made.append(StubObject(spec, **self._faults))
        return self.made[-1]


async def examined(*engines: StubEngine, objects: Objects | None = None) -> Report:
    async with world(*engines) as made:
        return await Examination(made.http, made.places, objects or Objects()).run()


def hops(report: Report) -> dict[str, Hop]:
    return {hop.name: hop for hop in report.hops}


async def test_all_is_fine(p: StubEngine, d: StubEngine) -> None:
    objects = Objects()
    report = await examined(p, d, objects=objects)
    assert report.exit_code == 0
    assert [hop.name for hop in report.hops] == [
        "doctor -> master",
        "doctor -> store",
        "find in the store",
        "store -> doctor",
        "find by the master's HTTP port",
        "store -> prefill-0",
        "store -> decode-0",
        "store -> decode-0 -> prefill-0",
        "prefill-0 -> decode-0",
        "remove from the store",
    ]
    (written,) = objects.made
    assert written.removed == 1
    assert written.spec.master == p.master
    assert written.spec.keys == tuple(
        f"model_{written.spec.seed}{suffix}" for suffix in ("_0_k", "_0_v")
    )
    assert written.spec.part_bytes == 128
    assert "RDMA" in report.notes[-1]


async def test_d_reads_from_the_store_what_p_pulls_and_is_released(
    p: StubEngine, d: StubEngine
) -> None:
    await examined(p, d)
    assert [order.source for order in d.orders] == ["describe", "store", "store", "release"]
    pull = p.orders[-1]
    assert (pull.source, pull.peer, pull.slot) == ("peer", "10.0.0.7:1", 7)
    assert len({order.run for order in [*p.orders, *d.orders]}) == 1


async def test_every_pair_is_tried() -> None:
    engines = [StubEngine(f"prefill-{i}", "prefill") for i in range(2)]
    engines += [StubEngine(f"decode-{i}", "decode", exports=(f"h:{i}",)) for i in range(2)]
    engines[1].fails["peer"] = ("transfer", "a one-sided read failed")
    report = await examined(*engines)
    assert report.problems == [
        "store -> decode-0 -> prefill-1",
        "store -> decode-1 -> prefill-1",
    ]
    assert [o.peer for o in engines[0].orders if o.source == "peer"] == ["h:0", "h:1"]


@pytest.mark.parametrize("step", ["mount", "write", "find"])
async def test_without_the_store_the_way_from_d_to_p_is_still_tried(
    p: StubEngine, d: StubEngine, step: str
) -> None:
    objects = Objects(fails=step)
    report = await examined(p, d, objects=objects)
    found = hops(report)
    assert report.exit_code == 1
    assert len(report.problems) == 1
    assert found["store -> prefill-0"].status == found["store -> decode-0"].status == "NOT RUN"
    assert found["decode-0 -> prefill-0"].status == "OK"
    assert "seed" in [order.source for order in d.orders]
    assert objects.made[0].removed == 1


async def test_the_doctor_itself_cannot_read_but_the_engines_can(
    p: StubEngine, d: StubEngine
) -> None:
    report = await examined(p, d, objects=Objects(fails="read"))
    assert report.problems == ["store -> doctor"]


async def test_a_hop_from_the_store_is_broken(p: StubEngine, d: StubEngine) -> None:
    d.fails["store"] = ("absent", "the store has no such object for it")
    d.master = "10.9.9.9:50051"
    report = await examined(p, d)
    assert report.problems == ["store -> decode-0"]
    hop = hops(report)["store -> decode-0"]
    assert "uses the master 10.9.9.9:50051" in hop.why
    assert "MOONCAKE_MASTER" in hop.fix
    assert hops(report)["decode-0 -> prefill-0"].status == "OK"


async def test_other_bytes_are_a_broken_hop(p: StubEngine, d: StubEngine) -> None:
    p.wrong.add("peer")
    report = await examined(p, d)
    hop = hops(report)["store -> decode-0 -> prefill-0"]
    assert (hop.status, hop.why) == ("BROKEN", "other bytes arrived in V")
    assert "do not serve" in hop.fix


async def test_d_without_an_export_server_or_memory(p: StubEngine, d: StubEngine) -> None:
    d.exports = ()
    report = await examined(p, d)
    assert "exports nothing" in hops(report)["store -> decode-0 -> prefill-0"].why
    d.orders.clear()
    d.fails["store"] = ("engine", "no page")
    d.fails["seed"] = ("engine", "no page")
    assert "decode-0: no page" in hops(await examined(p, d))["decode-0 -> prefill-0"].why


async def test_hooks_that_are_not_live(p: StubEngine, d: StubEngine) -> None:
    d.hooks = [dict(HOOK), {**HOOK, "target": "sglang.srt.m.C.g", "live": False}]
    report = await examined(p, d)
    assert report.problems == ["hooks of decode-0"]
    assert report.hooks[0].dead == ()
    assert report.hooks[1].dead == ("m.C.g (after): a reason",)
    assert "NOT LIVE  m.C.g (after): a reason" in report.text()


async def test_a_dead_thread(p: StubEngine, d: StubEngine) -> None:
    p.dead_threads = ["thread pulling has died"]
    report = await examined(p, d)
    assert report.problems == ["threads of prefill-0"]


async def test_engines_that_differ(p: StubEngine, d: StubEngine) -> None:
    d.fingerprint = "other"
    report = await examined(p, d)
    assert report.problems == ["engines can share pages"]
    why = hops(report)["engines can share pages"].why
    assert why.endswith("'prefill-0': same, 'decode-0': other")


async def test_one_engine_of_three_that_differs(p: StubEngine, d: StubEngine) -> None:
    other = StubEngine("decode-1", "decode", ("10.0.0.8:18011",), fingerprint="other")
    report = await examined(p, d, other)
    why = hops(report)["engines can share pages"].why
    assert why == "'decode-1': pages of another model, other weights, layout or keys"


async def test_an_engine_that_is_gone(p: StubEngine, d: StubEngine) -> None:
    async with world(p, d) as made:
        gone = Part("decode-1", "engine", "decode", "http://127.0.0.1:9")
        places = dataclasses.replace(made.places, parts=(*made.places.parts, gone))
        report = await Examination(made.http, places, Objects()).run()
    assert report.problems == ["decode-1"]
    assert "decode engine 'decode-1'" in report.components[-1].detail
    assert report.exit_code == 1


async def test_all_engines_are_gone_is_broken_not_unknown() -> None:
    places = Places((Part("prefill-0", "engine", "prefill", "http://127.0.0.1:9"),))
    async with aiohttp.ClientSession() as http:
        report = await Examination(http, places, Objects()).run()
    assert (report.exit_code, report.problems) == (1, ["prefill-0"])


async def test_engines_without_a_second_path_cannot_be_examined(
    p: StubEngine, d: StubEngine
) -> None:
    p.plugin = d.plugin = False
    objects = Objects()
    report = await examined(p, d, objects=objects)
    assert report.exit_code == 2
    assert "no engine with a second path" in report.cannot_run
    assert "prefill-0 runs without a second path" in report.notes
    assert objects.made == []


async def test_an_engine_that_lets_nobody_in(p: StubEngine, d: StubEngine) -> None:
    d.post_status = 401
    report = await examined(p, d)
    assert "door of decode-0" in report.problems
    assert "401" in hops(report)["door of decode-0"].why
    assert hops(report)["store -> prefill-0"].status == "OK"


async def test_an_engine_of_another_version(p: StubEngine, d: StubEngine) -> None:
    p.knows_probes = False
    report = await examined(p, d)
    assert "knows nothing of it" in hops(report)["door of prefill-0"].why


async def test_another_doctor_is_waited_for(
    p: StubEngine, d: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BUSY_PAUSE_S", 0.01)
    p.busy = 2
    assert (await examined(p, d)).exit_code == 0
    monkeypatch.setattr(door, "BUSY_S", 0.0)
    p.busy = 100
    report = await examined(p, d)
    assert report.problems == ["store -> prefill-0", "store -> decode-0 -> prefill-0"]
    assert "another doctor" in hops(report)["store -> prefill-0"].why


async def test_a_probe_without_end(
    p: StubEngine, d: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    p.pending = 10**4
    monkeypatch.setattr(door, "ANSWER_S", 0.1)
    assert "no result" in hops(await examined(p, d))["door of prefill-0"].why


@pytest.mark.parametrize(
    ("master", "problems"),
    [
        (master_app(), []),
        (master_app(ok=False), ["find by the master's HTTP port"]),
        (master_app(broken=True), ["find by the master's HTTP port", "remove from the store"]),
    ],
    ids=["fine", "not listed", "broken"],
)
async def test_the_masters_http_port(
    p: StubEngine, d: StubEngine, master: Any, problems: list[str]
) -> None:
    async with served(master) as urls, world(p, d, admin=urls[0]) as made:
        report = await Examination(made.http, made.places, Objects()).run()
    assert report.problems == problems


async def test_an_object_that_stays_is_told_by_name(p: StubEngine, d: StubEngine) -> None:
    report = await examined(p, d, objects=Objects(left=True))
    hop = hops(report)["remove from the store"]
    assert hop.status == "BROKEN"
    assert "dualpath-doctor-" in hop.why
