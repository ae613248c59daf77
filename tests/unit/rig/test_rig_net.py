"""Commands and counters of the two networks; no root needed."""

from __future__ import annotations

import json

import pytest

from benchmarks.rig import net
from benchmarks.rig.net import LabError, Node, NodeBytes

NODES = (Node("store", 1), Node("p1", 11), Node("d1", 21))


def words(commands: list[net.Command]) -> list[str]:
    return [" ".join(command) for command in commands]


def test_every_node_has_a_pair_per_network_and_the_right_address() -> None:
    built = words(net.build_commands("x", NODES))
    for node in ("store", "p1", "d1"):
        assert f"ip netns add x-{node}" in built
        for network, letter in (("storage", "s"), ("compute", "c")):
            pair = f"link add {network} type veth peer name {node}-{letter} netns x-switch"
            assert f"ip -n x-{node} {pair}" in built
            assert f"ip -n x-switch link set {node}-{letter} master {network} up" in built
            assert f"ip -n x-{node} link set {network} up" in built
    assert "ip -n x-p1 addr add 10.77.1.11/24 dev storage" in built
    assert "ip -n x-p1 addr add 10.77.2.11/24 dev compute" in built
    assert built.index("ip netns add x-switch") == 0
    assert built.index("ip -n x-switch link add storage type bridge") < built.index(
        "ip -n x-switch link set p1-s master storage up"
    )


def test_interface_names_fit_into_the_kernels_15_bytes() -> None:
    for command in net.build_commands("dprig", NODES):
        if "peer" in command:
            assert len(command[command.index("name") + 1]) <= 15


def test_both_ends_of_a_storage_pair_are_shaped_and_nothing_else() -> None:
    shaped = words(net.shape_commands("x", NODES[1:2], 40_000_000))
    bucket = "root tbf rate 40000000bit burst 256kb latency 100ms"
    assert shaped == [
        f"tc -n x-p1 qdisc replace dev storage {bucket}",
        f"tc -n x-switch qdisc replace dev p1-s {bucket}",
    ]
    unshaped = words(net.unshape_commands("x", NODES[1:2]))
    assert [line.split(" root ")[0] for line in unshaped] == [
        line.split(" root ")[0] for line in shaped
    ]


def link(name: str, rx: int, tx: int) -> dict[str, object]:
    return {"ifname": name, "stats64": {"rx": {"bytes": rx}, "tx": {"bytes": tx}}}


def test_what_the_switch_sends_is_what_the_node_reads() -> None:
    links = [link("lo", 9, 9), link("p1-s", 10, 20), link("p1-c", 30, 40)]
    counted = net.parse_counters(json.dumps(links), [NODES[1]])
    assert counted == {"p1": NodeBytes(20, 10, 40, 30)}
    assert counted["p1"].since(NodeBytes(5, 5, 5, 5)) == NodeBytes(15, 5, 35, 25)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", json.dumps([link("p1-s", 1, 2)])])
def test_counters_that_are_not_all_there(text: str) -> None:
    with pytest.raises(LabError, match="no counters"):
        net.parse_counters(text, [NODES[1]])


def test_processes_start_with_nsenter() -> None:
    assert net.enter_words("x", "p1") == ("nsenter", "--net=/var/run/netns/x-p1", "--")
