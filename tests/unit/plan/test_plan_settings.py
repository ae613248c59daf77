"""The router of a stack is told where the store's master answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from agent_runtime.config import ModelConfig, RouterConfig, SplitPolicy, StackConfig, StoreConfig
from agent_runtime.settings import decode
from agent_runtime.stack.commands import Programs
from agent_runtime.stack.layout import build, port_requests
from dualpath_sglang.contract.errors import ConfigError


def router_of(**changes: Any) -> RouterConfig:
    config = StackConfig(model=ModelConfig(path="/models/tiny"), **changes)
    ports = {r.key: r.wanted or 20_000 + i for i, r in enumerate(port_requests(config))}
    files = build(config, ports, Path("/run"), Path("/sock"), Programs()).files
    return decode(RouterConfig, yaml.safe_load(files[Path("/run/router.yaml")]), "router.yaml")


def test_master_started_here() -> None:
    router = router_of(store=StoreConfig(metrics_port=9013))
    assert router.store_admin_url == "http://127.0.0.1:9013"


def test_master_elsewhere_is_for_the_user_to_name() -> None:
    elsewhere = StoreConfig(master_url="10.0.0.1:50051")
    assert router_of(store=elsewhere).store_admin_url == ""
    named = RouterConfig(store_admin_url="http://10.0.0.1:9003")
    assert router_of(store=elsewhere, router=named).store_admin_url == "http://10.0.0.1:9003"
    assert router_of(store=StoreConfig(enabled=False)).store_admin_url == ""


@pytest.mark.parametrize("policy", get_args(SplitPolicy))
def test_policies_are_settings(policy: str) -> None:
    assert decode(RouterConfig, {"split_policy": policy}, "t").split_policy == policy


def test_strict() -> None:
    with pytest.raises(ConfigError, match="split_policy"):
        decode(RouterConfig, {"split_policy": "halves"}, "t")
    with pytest.raises(ConfigError, match="split_polcy"):
        decode(RouterConfig, {"split_polcy": "split"}, "t")
