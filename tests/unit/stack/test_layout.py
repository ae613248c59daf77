"""Command lines, names and settings that do not fit together. Pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent_runtime.config import (
    EngineEndpoint,
    EngineGroup,
    ModelConfig,
    RouterConfig,
    StackConfig,
    StoreConfig,
)
from agent_runtime.dispatch.fleet import fleet_of
from agent_runtime.settings import decode
from agent_runtime.stack.commands import Programs, to_argv
from agent_runtime.stack.component import Component, HttpReady, Layout
from agent_runtime.stack.layout import build, port_requests
from agent_runtime.stack.names import named_engines
from agent_runtime.stack.sglang_flags import check_flags, known_flags
from agent_runtime.stack.validate import validate
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.secondpath.checks import POLICIES

MODEL = ModelConfig(path="/models/tiny")
PREFILL, DECODE, PLAIN = (EngineGroup(role=r) for r in ("prefill", "decode", "plain"))


def stack(**changes: Any) -> StackConfig:
    return StackConfig(**({"model": MODEL} | changes))


def layout(config: StackConfig) -> Layout:
    ports = {r.key: r.wanted or 20_000 + i for i, r in enumerate(port_requests(config))}
    return build(config, ports, Path("/run"), Path("/sock"), Programs())


def part(config: StackConfig, name: str) -> Component:
    return next(c for c in layout(config).components if c.name == name)


def flags(component: Component) -> dict[str, str | None]:
    """--key value pairs; None for a bare flag."""
    words, found = list(component.command), {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word[2:]] = None if after.startswith("--") else after
    return found


def test_cpu_engines() -> None:
    config = stack(cpu=True, context_length=4096)
    prefill, decode_ = flags(part(config, "prefill-0")), flags(part(config, "decode-0"))
    for got in (prefill, decode_):
        assert got["model-path"] == "/models/tiny"
        assert got["served-model-name"] == "tiny"
        assert got["page-size"] == "16"
        assert got["max-total-tokens"] == "16384"
        assert got["context-length"] == "4096"
        assert got["device"] == "cpu"
        assert got["attention-backend"] == "torch_native"
        assert "disable-overlap-schedule" in got
        assert got["hicache-storage-backend"] == "mooncake"
        assert got["hicache-mem-layout"] == "page_first_direct"
        extra = got["hicache-storage-backend-extra-config"]
        assert extra is not None
        assert json.loads(extra) == {"prefetch_threshold": 16}
    assert prefill["disaggregation-mode"] == "prefill"
    assert "disaggregation-bootstrap-port" in prefill
    assert "disaggregation-decode-enable-radix-cache" not in prefill
    assert decode_["disaggregation-mode"] == "decode"
    assert "disaggregation-decode-enable-radix-cache" in decode_
    assert "disaggregation-bootstrap-port" not in decode_
    env = part(config, "decode-0").env
    assert env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert env["MOONCAKE_GLOBAL_SEGMENT_SIZE"] == "0"
    assert env["MOONCAKE_MASTER"] == part(config, "master").url
    assert env["MC_FORCE_TCP"] == "1"


def test_gpu_engines_have_no_cpu_flags() -> None:
    got = part(stack(store=StoreConfig(protocol="rdma", device_name="mlx5_0")), "prefill-0")
    assert not {"device", "attention-backend", "disable-overlap-schedule"} & flags(got).keys()
    assert "max-total-tokens" not in flags(got)
    assert flags(got)["disaggregation-ib-device"] == "mlx5_0"
    assert "SGLANG_USE_CPU_ENGINE" not in got.env
    assert "MC_FORCE_TCP" not in got.env
    assert got.env["MOONCAKE_PROTOCOL"] == "rdma"


def test_the_second_path_travels_as_the_store_does() -> None:
    far = EngineGroup(role="decode", env={"DUALPATH_ENGINE_PEER_PROTOCOL": "tcp"})
    config = stack(store=StoreConfig(protocol="rdma", device_name="mlx5_0"), engines=(PREFILL, far))
    prefill, decode_ = (
        EngineConfig.from_env(part(config, n).env) for n in ("prefill-0", "decode-0")
    )
    assert (prefill.peer_protocol, prefill.peer_device) == ("rdma", "mlx5_0")
    assert (decode_.peer_protocol, decode_.peer_device) == ("tcp", "mlx5_0")


def test_a_plain_engine_has_no_pd_cache_tiers_or_store() -> None:
    config = stack(engines=(PLAIN,), start_router=False)
    (plain,) = layout(config).components
    assert not [f for f in flags(plain) if f.startswith(("disaggregation", "hicache"))]
    assert "enable-hierarchical-cache" not in flags(plain)
    assert not [k for k in plain.env if k.startswith("MOONCAKE")]
    assert plain.after == ()


def test_without_a_store_there_are_still_cache_tiers() -> None:
    config = stack(store=StoreConfig(enabled=False))
    assert {c.kind for c in layout(config).components} == {"engine", "router", "renderer"}
    got = part(config, "prefill-0")
    assert "enable-hierarchical-cache" in flags(got)
    assert "hicache-storage-backend" not in flags(got)
    assert "MOONCAKE_MASTER" not in got.env


def test_flags_and_environment_of_a_group_win() -> None:
    own: dict[str, str | int | float | bool] = {
        "page_size": 64,
        "enable-metrics": False,
        "tp-size": 2,
        "enable-mixed-chunk": True,
    }
    group = EngineGroup(role="prefill", flags=own, env={"MC_FORCE_TCP": "0"})
    got = part(stack(engines=(group, DECODE)), "prefill-0")
    assert flags(got)["page-size"] == "64"
    assert flags(got)["tp-size"] == "2"
    assert "enable-mixed-chunk" in flags(got)
    assert "enable-metrics" not in flags(got)
    assert got.command.count("--page-size") == 1
    assert got.env["MC_FORCE_TCP"] == "0"


def test_every_flag_exists_in_the_installed_sglang() -> None:
    known = known_flags()
    if not known:
        pytest.skip("SGLang is not installed")
    config = stack(
        cpu=True,
        context_length=64,
        dtype="float32",
        engines=(PREFILL, DECODE, PLAIN),
        store=StoreConfig(device_name="x"),
    )
    for name in ("prefill-0", "decode-0", "plain-0"):
        for flag in flags(part(config, name)):
            assert flag in known


def test_a_flag_that_sglang_does_not_have() -> None:
    known = frozenset({"chunked-prefill-size", "tp-size", "enable-metrics"})
    fine: dict[str, str | int | float | bool] = {"tp": 2, "no-enable-metrics": True}
    check_flags(stack(engines=(EngineGroup(flags=fine), DECODE)), known)
    wrong = EngineGroup(flags={"chunked_prefil_size": 64})
    with pytest.raises(ConfigError, match="did you mean 'chunked-prefill-size'"):
        check_flags(stack(engines=(wrong, DECODE)), known)


def test_router_file_and_endpoints() -> None:
    config = stack(engines=(msgspec.structs.replace(PREFILL, count=2), DECODE), context_length=99)
    got = layout(config)
    text = got.files[Path("/run/router.yaml")]
    router = decode(RouterConfig, yaml.safe_load(text), "router.yaml")
    assert router.engines == got.engines
    assert [e.name for e in router.engines] == ["prefill-0", "prefill-1", "decode-0"]
    assert (router.model_path, router.model_name) == ("/models/tiny", "tiny")
    assert router.context_length == 99
    assert router.database == "/run/sessions.sqlite"
    assert router.renderer_socket == "/sock/renderer.sock"
    assert got.router_url == f"http://127.0.0.1:{router.port}"
    prefill = flags(part(config, "prefill-1"))
    assert str(router.engines[1].bootstrap_port) == prefill["disaggregation-bootstrap-port"]


def test_plain_engines_get_the_router_where_they_are_alone() -> None:
    two = msgspec.structs.replace(PLAIN, count=2)
    got = layout(stack(engines=(two,)))
    assert {c.kind for c in got.components} == {"engine", "router", "renderer"}
    assert [(e.name, e.role) for e in got.engines] == [("plain-0", "plain"), ("plain-1", "plain")]
    assert fleet_of(got.engines).keys() == {"plain-0", "plain-1"}
    beside = layout(stack(engines=(PREFILL, DECODE, PLAIN)))
    assert [e.name for e in beside.engines] == ["prefill-0", "decode-0"]


def test_engines_started_elsewhere() -> None:
    groups = (
        EngineGroup(role="prefill", url="http://10.0.0.1:30000/", name="far"),
        EngineGroup(role="decode", url="http://10.0.0.2:30000"),
    )
    config = stack(engines=groups, store=StoreConfig(enabled=False))
    got = layout(config)
    assert got.engines == (
        EngineEndpoint("far", "prefill", "http://10.0.0.1:30000", "10.0.0.1", 8998),
        EngineEndpoint("decode-0", "decode", "http://10.0.0.2:30000", "", 0),
    )
    assert [c.name for c in got.components if c.external] == ["far", "decode-0"]
    assert {r.key for r in port_requests(config)} == {"router"}


def test_a_master_started_elsewhere() -> None:
    store = StoreConfig(master_url="10.0.0.9:50051")
    assert "master" not in {c.name for c in layout(stack(store=store)).components}
    assert part(stack(store=store), "store").command[-7:-5] == ("10.0.0.9:50051", "--host")
    assert part(stack(store=store), "decode-0").env["MOONCAKE_MASTER"] == "10.0.0.9:50051"
    no_segment = msgspec.structs.replace(store, segment_bytes=0)
    assert "store" not in {c.name for c in layout(stack(store=no_segment)).components}


def test_order_of_start() -> None:
    after = {c.name: c.after for c in layout(stack()).components}
    assert after == {
        "master": (),
        "store": ("master",),
        "prefill-0": ("master", "store"),
        "decode-0": ("master", "store"),
        "router": (),
        "renderer": (),
    }


def test_names() -> None:
    groups = (
        EngineGroup(role="decode", count=2),
        EngineGroup(role="decode"),
        EngineGroup(role="prefill", name="p"),
        EngineGroup(role="prefill", name="q", count=2),
    )
    names = [e.name for e in named_engines(stack(engines=groups))]
    assert names == ["decode-0", "decode-1", "decode-2", "p", "q-0", "q-1"]


def test_ports_of_a_group_follow_each_other() -> None:
    group = EngineGroup(role="prefill", count=2, port=30000, bootstrap_port=8998)
    wanted = {r.key: r.wanted for r in port_requests(stack(engines=(group, DECODE)))}
    assert wanted["prefill-1.http"] == 30001
    assert wanted["prefill-1.bootstrap"] == 8999
    assert wanted["prefill-0.nccl"] == wanted["decode-0.http"] == 0


def test_engines_and_store_on_networks_of_their_own() -> None:
    """Each engine behind a prefix (a namespace, say), with one address per network."""
    groups = (
        EngineGroup("prefill", name="p1", host="10.2.0.1", store_host="10.1.0.1"),
        EngineGroup("decode", name="d1", host="10.2.0.2", command_prefix=("nsenter", "--net=d1")),
    )
    store = StoreConfig(host="10.1.0.9", command_prefix=("nsenter", "--net=s"))
    config = stack(engines=groups, store=store)
    p1, d1 = part(config, "p1"), part(config, "d1")
    assert flags(p1)["host"] == p1.env["SGLANG_HOST_IP"] == "10.2.0.1"
    assert p1.url.startswith("http://10.2.0.1:")
    assert p1.env["MOONCAKE_LOCAL_HOSTNAME"] == "10.1.0.1"
    assert d1.env["MOONCAKE_LOCAL_HOSTNAME"] == "10.2.0.2"
    assert d1.command[:3] == ("nsenter", "--net=d1", Programs().engine[0])
    assert layout(config).engines[0].bootstrap_host == "10.2.0.1"
    for name in ("master", "store"):
        assert part(config, name).command[:2] == ("nsenter", "--net=s")
    assert p1.env["MOONCAKE_MASTER"] == part(config, "master").url
    assert part(config, "master").url.startswith("10.1.0.9:")
    assert "10.1.0.9" in part(config, "store").command


def test_a_stack_without_engines_is_a_store() -> None:
    config = stack(engines=(), start_router=False)
    assert [c.name for c in layout(config).components] == ["master", "store"]


FAR = "http://10.0.0.1:30000"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ModelConfig()}, "model.path"),
        ({"engines": (PREFILL,)}, "engines"),
        ({"engines": (PREFILL, PLAIN)}, "engines"),
        ({"engines": ()}, "engines"),
        ({"host": "0.0.0.0"}, "host"),
        ({"store": StoreConfig(host="::")}, "store.host"),
        ({"engines": (PREFILL, EngineGroup(role="decode", host="0.0.0.0"))}, "engines[1].host"),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", url=FAR, command_prefix=("x",)))},
            "engines[1].command_prefix",
        ),
        ({"host": "[::1]"}, "host"),
        ({"host": "http://10.0.0.1"}, "host"),
        ({"router": RouterConfig(host="a b")}, "router.host"),
        ({"router": RouterConfig(store_admin_url="x:1")}, "router.store_admin_url"),
        ({"model": ModelConfig(path="m", served_name="qwen3:0.6b")}, "model.served_name"),
        ({"model": ModelConfig(path="m", served_name="v1,2")}, "model.served_name"),
        ({"model": ModelConfig(path="m", served_name="a\nb")}, "model.served_name"),
        ({"store": StoreConfig(master_url="::1:50051")}, "store.master_url"),
        ({"store": StoreConfig(master_url="[::1]:50051")}, "store.master_url"),
        ({"host": "::1", "store": StoreConfig(host="10.0.0.1")}, "store.host"),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", store_host="::1"))},
            "engines[1].store_host",
        ),
        ({"store": StoreConfig(master_url="http://x:1")}, "store.master_url"),
        ({"store": StoreConfig(master_url="x")}, "store.master_url"),
        ({"router": RouterConfig(engines=(EngineEndpoint(),))}, "router.engines"),
        ({"engines": (PREFILL, EngineGroup(role="decode", name="store"))}, "engines[1].name"),
        (
            {"engines": (EngineGroup(name="x"), EngineGroup(role="decode", name="x"))},
            "engines[1].name",
        ),
        ({"engines": (PREFILL, EngineGroup(role="decode", url="x:1"))}, "engines[1].url"),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", url="http://::1:30000"))},
            "engines[1].url",
        ),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", url="http://[::1:30000"))},
            "engines[1].url",
        ),
        ({"engines": (PREFILL, EngineGroup(role="decode", url=FAR, count=2))}, "engines[1].count"),
        ({"engines": (PREFILL, EngineGroup(role="decode", url=FAR, port=1))}, "engines[1].port"),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", url=FAR, flags={"a": 1}))},
            "engines[1].flags",
        ),
        (
            {"engines": (EngineGroup(flags={"disaggregation_mode": "null"}), DECODE)},
            "engines[0].flags.disaggregation_mode",
        ),
        (
            {"engines": (PREFILL, EngineGroup(role="decode", bootstrap_port=1))},
            "engines[1].bootstrap_port",
        ),
        (
            {"engines": (EngineGroup(env={"DUALPATH_ENGINE_PIN_FRACTOIN": "1"}), DECODE)},
            "engines[0].env.DUALPATH_ENGINE_PIN_FRACTOIN",
        ),
        (
            {"engines": (EngineGroup(env={"DUALPATH_ENGINE_PIN_FRACTION": "9"}), DECODE)},
            "engines[0].env.DUALPATH_ENGINE_PIN_FRACTION",
        ),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(stack(**changes))
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize("policy", ["best_effort", "wait_complete", "timeout"])
def test_a_prefetch_policy_that_the_engines_would_refuse(policy: Any) -> None:
    config = stack(prefetch_policy=policy)
    if policy in POLICIES:
        validate(config)
        return
    with pytest.raises(ConfigError, match="second path") as caught:
        validate(config)
    assert caught.value.field == "prefetch_policy"
    validate(msgspec.structs.replace(config, hooks="reports"))
    validate(msgspec.structs.replace(config, store=StoreConfig(enabled=False)))


def test_ipv6_addresses_stand_in_brackets_where_a_port_follows() -> None:
    got = layout(stack(host="::1", insecure=True, router=RouterConfig(host="::", port=30_000)))
    parts = {c.name: c for c in got.components}
    assert got.router_url == "http://[::1]:30000"
    master = parts["master"]
    assert master.url == f"[::1]:{master.ports['rpc']}"
    assert parts["decode-0"].env["MOONCAKE_MASTER"] == master.url
    assert parts["decode-0"].env["MC_USE_IPV6"] == parts["store"].env["MC_USE_IPV6"] == "1"
    assert parts["decode-0"].ready == HttpReady(f"{parts['decode-0'].url}/health")
    for endpoint in got.engines:
        assert endpoint.url.startswith("http://[::1]:")
    assert fleet_of(got.engines)
    text = got.files[Path("/run/router.yaml")]
    router = decode(RouterConfig, yaml.safe_load(text), "router.yaml")
    assert router.store_admin_url == f"http://[::1]:{master.ports['metrics']}"
    validate(stack(host="::1", store=StoreConfig(master_url="[::1]:50051")))
    validate(stack(engines=(PREFILL, EngineGroup(role="decode", url="http://[fd00::7]:30000"))))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("qwen3:0.6b", "qwen3-0.6b"),
        ("v1,2", "v1-2"),
        ("mein Modell ü", "mein Modell ü"),
        ("a::,b", "a-b"),
    ],
)
def test_a_folder_may_have_a_name_that_no_model_may(folder: str, name: str) -> None:
    config = stack(model=ModelConfig(path=f"/models/{folder}"))
    validate(config)
    engine = flags(part(config, "prefill-0"))
    assert engine["served-model-name"] == name
    assert engine["model-path"] == f"/models/{folder}"


def test_components_reach_each_other_without_a_proxy() -> None:
    far = EngineGroup(role="decode", url="http://far.example:30000")
    near = EngineGroup(role="prefill", host="10.0.0.1", store_host="10.1.0.1")
    config = stack(engines=(near, far), store=StoreConfig(master_url="10.9.9.9:50051"))
    ports = {r.key: r.wanted or 20_000 + i for i, r in enumerate(port_requests(config))}
    folders = (Path("/run"), Path("/sock"))
    made = build(config, ports, *folders, Programs(), no_proxy="corp.example, 10.0.0.1")
    for component in made.components:
        assert component.env["NO_PROXY"] == component.env["no_proxy"]
    hosts = made.components[0].env["no_proxy"].split(",")
    assert hosts[:5] == ["corp.example", "10.0.0.1", "localhost", "127.0.0.1", "::1"]
    assert {"10.9.9.9", "far.example", "10.1.0.1"} <= set(hosts)
    assert len(set(hosts)) == len(hosts)
    everything = build(config, ports, *folders, Programs(), no_proxy="*")
    assert "NO_PROXY" not in everything.components[0].env
    own = EngineGroup(role="prefill", env={"no_proxy": "mine"})
    assert part(stack(engines=(own, DECODE)), "prefill-0").env["no_proxy"] == "mine"


def test_words_of_flags() -> None:
    values: dict[str, str | int | float | bool] = {"a": 1, "b": True, "c": False, "d": "x y"}
    assert to_argv(values) == ("--a", "1", "--b", "--d", "x y")
    assert to_argv(values, equals=True) == ("--a=1", "--b=true", "--c=false", "--d=x y")
