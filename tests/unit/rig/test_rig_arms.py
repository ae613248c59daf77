"""Which runs are made, on which engines, with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import asdict

from agent_runtime.config import EngineEndpoint, StackConfig
from agent_runtime.stack.commands import Programs
from agent_runtime.stack.component import Component
from agent_runtime.stack.layout import build, port_requests
from benchmarks.rig import cli
from benchmarks.rig.arms import (
    ALL_NODES,
    ARMS,
    BESIDE,
    ENGINE_NODES,
    TOPOLOGIES,
    Job,
    Variant,
    jobs,
)
from benchmarks.rig.config import RigConfig
from benchmarks.rig.net import enter_words
from benchmarks.rig.stacks import StackPlan, settings, shown_flags
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.errors import ConfigError

MASTER = "10.77.1.1:21000"
PLAN = StackPlan(RigConfig(), Path("/models/m"), Path("/out"), lambda n: enter_words("x", n))
VARIANTS: tuple[Variant, ...] = ("prefill_store", "both_stores", "no_store", "second_path")


def parts(config: StackConfig) -> dict[str, Component]:
    ports = {request.key: 20_000 + i for i, request in enumerate(port_requests(config))}
    made = build(config, ports, Path("/run"), Path("/sock"), Programs())
    return {part.name: part for part in made.components}


def engines(variant: Variant, topology: str = "1P1D") -> dict[str, Component]:
    return parts(PLAN.engines(variant, TOPOLOGIES[topology], MASTER))


def test_limits_are_the_storage_nics_over_those_of_prefill() -> None:
    assert {key: t.limit for key, t in TOPOLOGIES.items()} == {
        "1P1D": 2.0,
        "1P2D": 3.0,
        "2P1D": 1.5,
    }


def test_every_engine_of_every_topology_has_a_node_and_all_addresses_differ() -> None:
    for topology in TOPOLOGIES.values():
        assert set(topology.engine_names) <= set(ENGINE_NODES)
    assert len({node.number for node in ALL_NODES}) == len(ALL_NODES)


def test_upstream_arms_have_cpu_support_only_and_ours_the_second_path() -> None:
    for variant in VARIANTS:
        for name, part in engines(variant).items():
            ours = variant == "second_path"
            assert part.env["DUALPATH_ENGINE_HOOKS"] == ("all" if ours else "cpu"), name
            assert ("radix-cache-backend" in shown_flags(part.command)) == ours


def test_loads_on_slow_nics_have_the_time_they_need() -> None:
    """The longest load of all: everything in flight through one storage NIC."""
    config = RigConfig()
    tokens = config.max_inflight * 1.25 * (config.context + 2000)
    seconds = tokens * config.model.kv_bytes_per_token * 8 / config.nic_bits_per_s
    made = engines("second_path")
    settings = EngineConfig.from_env(made["d1"].env)
    assert min(settings.staging_deadline_s, settings.pull_deadline_s) > 2 * seconds
    assert settings.pin_fraction * config.decode_pools.host_tokens > 4 * config.context
    assert "DUALPATH_ENGINE_LEASE_S" not in engines("both_stores")["d1"].env


def test_who_reads_the_store_in_each_variant() -> None:
    readers = {"prefill_store": {"p1"}, "both_stores": {"p1", "d1"}, "no_store": set()}
    readers["second_path"] = {"p1", "d1"}
    for variant in VARIANTS:
        made = engines(variant)
        having = {n for n, p in made.items() if "hicache-storage-backend" in shown_flags(p.command)}
        assert having == readers[variant]
    upstream = shown_flags(engines("prefill_store")["d1"].command)
    assert not [flag for flag in upstream if "hicache" in flag or "hierarchical" in flag]
    assert "disaggregation-decode-enable-radix-cache" in upstream


def test_prefill_engines_are_alike_in_all_variants() -> None:
    flags = {variant: shown_flags(engines(variant)["p1"].command) for variant in VARIANTS}
    config = RigConfig()
    for found in flags.values():
        assert found["max-total-tokens"] == str(config.prefill_pools.tokens)
        assert found["hicache-ratio"] == str(config.prefill_pools.ratio)
        assert found["attention-backend"] == "torch_native"
    assert flags["prefill_store"] == flags["both_stores"]
    ours = dict(flags["second_path"])
    assert ours.pop("radix-cache-backend") == "dualpath"
    assert ours == flags["prefill_store"]


def test_settings_that_are_not_the_defaults_are_all_disclosed() -> None:
    told = {name: value["rig"] for name, value in settings().items()}
    router = PLAN.router(ARMS["split"], (), MASTER, "").router
    for part in engines("second_path").values():
        config = asdict(EngineConfig.from_env(part.env)) | asdict(router)
        assert {name: config[name] for name in told} == told
        changed = asdict(EngineConfig.from_env(part.env)).items() - asdict(EngineConfig()).items()
        assert {name for name, _ in changed} - {"hooks"} == told.keys() - {"plan_deadline_s"}
    assert all(value["rig"] != value["default"] for value in settings().values())


def test_several_engines_share_the_memory_of_one() -> None:
    config = RigConfig()
    for topology in TOPOLOGIES:
        made = engines("second_path", topology)
        for role, alone in (("prefill", config.prefill_pools), ("decode", config.decode_pools)):
            flags = [shown_flags(p.command) for p in made.values() if p.role == role]
            tokens = [int(f["max-total-tokens"]) for f in flags]
            host = [n * float(f["hicache-ratio"]) for n, f in zip(tokens, flags, strict=True)]
            assert sum(host) == pytest.approx(alone.host_tokens, abs=2)
            assert min(tokens) >= min(alone.tokens, 12_288)


def test_each_engine_runs_on_its_node_with_an_address_per_network() -> None:
    made = engines("second_path", "1P2D")
    assert set(made) == {"p1", "d1", "d2"}
    for name, part in made.items():
        node = ENGINE_NODES[name]
        assert part.command[:3] == enter_words("x", name)
        assert part.env["SGLANG_HOST_IP"] == node.address("compute")
        assert part.env["MOONCAKE_LOCAL_HOSTNAME"] == node.address("storage")
        assert part.env["MOONCAKE_MASTER"] == MASTER
        assert part.env["MOONCAKE_GLOBAL_SEGMENT_SIZE"] == "0"
        assert part.url.startswith(f"http://{node.address('compute')}:")


def test_engines_of_the_rig_have_threads_that_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.rig import engine, polling
    from dualpath_sglang.cpu import hooks

    monkeypatch.setattr(hooks, "CPU_HOOKS", hooks.CPU_HOOKS)
    for _ in range(2):
        engine.add_hooks()
        for hook in polling.POLLING_HOOKS:
            assert hooks.CPU_HOOKS.count(hook) == 1


def test_the_store_stands_alone_on_its_node() -> None:
    made = parts(PLAN.store())
    assert set(made) == {"master", "store"}
    assert made["master"].url.startswith("10.77.1.1:")
    assert all(part.command[:3] == enter_words("x", "store") for part in made.values())


def test_the_router_knows_running_engines_and_the_store() -> None:
    running = (
        EngineEndpoint("p1", "prefill", "http://10.77.2.11:20001", "10.77.2.11", 20002),
        EngineEndpoint("d1", "decode", "http://10.77.2.21:20003"),
    )
    config = PLAN.router(ARMS["split"], running, MASTER, "http://10.77.1.1:20009")
    ports = {request.key: 20_000 for request in port_requests(config)}
    assert set(ports) == {"router"}
    made = build(config, ports, Path("/run"), Path("/sock"), Programs())
    assert made.engines == running
    text = made.files[Path("/run/router.yaml")]
    assert "split_policy: split" in text
    assert "store_admin_url: http://10.77.1.1:20009" in text
    upstream = PLAN.router(ARMS["oracle"], running, MASTER, "http://10.77.1.1:20009").router
    assert (upstream.split_policy, upstream.store_admin_url) == ("none", "")


def test_flags_that_say_what_an_engine_does() -> None:
    command = ("nsenter", "--net=/x", "--", "python", "-m", "y", "--host", "1.2.3.4", "--port", "1")
    command += ("--page-size", "16", "--enable-metrics", "--dtype", "float32", "--last")
    assert shown_flags(command) == {
        "page-size": "16",
        "enable-metrics": "",
        "dtype": "float32",
        "last": "",
    }


# --- order -----------------------------------------------------------------------------------


def test_engines_are_started_once_per_variant_and_runs_go_round_the_arms() -> None:
    runs = dict.fromkeys(ARMS, 2)
    planned = jobs(["1P1D"], list(ARMS), runs)
    assert len(planned) == len(set(planned)) == 2 * len(ARMS)
    variants = [ARMS[job.arm].variant for job in planned]
    starts = [v for i, v in enumerate(variants) if i == 0 or variants[i - 1] != v]
    assert len(starts) == len(set(starts)) == len(VARIANTS)
    first = [(job.arm, job.index) for job in planned[:4]]
    assert first == [
        ("upstream_prefill_only", 0),
        ("oracle", 0),
        ("upstream_prefill_only", 1),
        ("oracle", 1),
    ]


def test_the_standard_preset() -> None:
    topologies, runs = cli.PRESETS["standard"]
    planned = jobs(topologies, list(ARMS), runs)
    assert topologies == ("1P1D", "1P2D")
    for topology in topologies:
        of = [job.arm for job in planned if job.topology == topology]
        assert of.count("split") == of.count("upstream_prefill_only") == 3
        assert all(of.count(arm) == 1 for arm in ARMS if runs[arm] == 1)
        assert len(of) == 13
    everything = jobs(*_args(cli.PRESETS["full"]))
    assert len(everything) == 3 * 3 * len(ARMS)


def _args(
    preset: tuple[tuple[str, ...], dict[str, int]],
) -> tuple[tuple[str, ...], list[str], dict[str, int]]:
    return preset[0], list(ARMS), preset[1]


def test_engines_beside_others_are_on_other_nodes() -> None:
    assert not set(BESIDE.engine_names) & set(TOPOLOGIES["1P1D"].engine_names)
    assert set(BESIDE.engine_names) <= set(ENGINE_NODES)


def test_other_measurements_by_preset_and_by_flag() -> None:
    def pairs(*words: str) -> dict[str, int]:
        return cli.rig_order(cli._parser().parse_args(["run", *words])).pairs

    assert pairs() == {"isolated": 20, "unshaped": 0, "tpot": 0}
    assert pairs("--preset", "full") == {"isolated": 20, "unshaped": 5, "tpot": 10}
    assert pairs("--arm", "split", "--tpot-pairs", "3") == {
        "isolated": 0,
        "unshaped": 0,
        "tpot": 3,
    }


def test_job_names() -> None:
    assert Job("1P1D", "split", 2).name == "1P1D/split/2"


# --- settings --------------------------------------------------------------------------------


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="turns must be above 0"):
        RigConfig(turns=0)


def test_runs_with_other_settings_have_another_digest() -> None:
    assert RigConfig().digest == RigConfig().digest
    assert RigConfig().digest != RigConfig(nic_bits_per_s=1).digest


def test_kv_bytes_are_those_of_the_model() -> None:
    testmodel = pytest.importorskip("dualpath_sglang.testmodel")
    size = RigConfig().model
    spec = testmodel.ModelSpec(**json.loads(json.dumps(size.__dict__)))
    assert size.kv_bytes_per_token == spec.kv_bytes_per_token


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    args = cli._parser().parse_args(
        ["run", "--topology", "1P2D", "--arm", "split", "--runs", "4", "--nic-mbit", "16"]
    )
    assert cli.rig_config(args).nic_bits_per_s == 16_000_000
    order = cli.rig_order(args)
    assert [job.name for job in order.jobs()] == [f"1P2D/split/{i}" for i in range(4)]
    assert cli.main(["run", "--arm", "nope"]) == 2
    assert "unknown arm 'nope'" in capsys.readouterr().err
