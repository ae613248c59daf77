from __future__ import annotations

import random
import socket

import pytest

from agent_runtime.stack.ports import HIGHEST, LOWEST, PortRequest, is_free, lease
from dualpath_sglang.contract.errors import ConfigError


def test_no_port_is_given_twice() -> None:
    # The same seed walks the same ports: only the lease keeps the second off the first's.
    first = lease([PortRequest(f"a{i}", "x") for i in range(50)], random.Random(7))
    second = lease([PortRequest(f"b{i}", "x") for i in range(50)], random.Random(7))
    both = [*first.ports.values(), *second.ports.values()]
    assert len(set(both)) == 100
    assert all(LOWEST <= port < HIGHEST for port in both)
    first.release()
    second.release()


def test_a_released_port_can_be_leased_again() -> None:
    held = lease([PortRequest("a", "x")])
    port = held.ports["a"]
    with pytest.raises(ConfigError, match=r"router\.port: port .* is in use"):
        lease([PortRequest("b", "router.port", port)])
    held.release()
    again = lease([PortRequest("b", "router.port", port)])
    assert again.ports["b"] == port
    again.release()


def test_a_wanted_port_in_use_names_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(ConfigError) as caught:
            lease([PortRequest("a", "engines[0].port", port)])
    assert caught.value.field == "engines[0].port"
    assert f"port {port} is in use" in caught.value.message


def test_a_port_in_use_on_ipv6_alone() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        assert not is_free(taken.getsockname()[1])


def test_two_settings_for_one_port() -> None:
    requests = [PortRequest("a", "router.port", 9000), PortRequest("b", "store.master_port", 9000)]
    with pytest.raises(ConfigError, match=r"router.port and store.master_port both ask for"):
        lease(requests)


def test_no_port() -> None:
    with pytest.raises(ConfigError, match=r"router\.port: 70000 is not a port"):
        lease([PortRequest("a", "router.port", 70_000)])
