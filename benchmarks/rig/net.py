"""Two networks on one machine: which commands build them, and what their counters say. Pure.

    switch namespace:   bridge "storage"                bridge "compute"
                          │ p1-s  │ d1-s  │ store-s       │ p1-c  │ d1-c  │ ...
    node namespaces:      │       │       │               │       │
                        storage  storage  storage       compute  compute

One namespace per node, each with one veth pair per network; the other ends sit in bridges in a
namespace of their own, so that nothing of the rig is visible outside of its namespaces and all
counters can be read in one call. A node's storage NIC is a token bucket filter (`tbf`) on both
ends of its storage pair: a rate, kept by the kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dualpath_sglang.contract.errors import DualPathError

Command = tuple[str, ...]
Network = Literal["storage", "compute"]
NETWORKS: tuple[Network, ...] = ("storage", "compute")
SUBNETS = {"storage": "10.77.1", "compute": "10.77.2"}
SWITCH = "switch"
NETNS_DIR = "/var/run/netns"
BURST, LATENCY = "256kb", "100ms"
"""Of the token bucket: a burst above the largest packet (64 KiB with segmentation offload)."""


class LabError(DualPathError):
    """The networks cannot be built, read or taken down."""

    kind = "lab_error"


@dataclass(frozen=True)
class Node:
    """One machine of the lab; `number` is the last byte of its addresses."""

    name: str
    number: int

    def address(self, network: Network) -> str:
        return f"{SUBNETS[network]}.{self.number}"


@dataclass(frozen=True)
class NodeBytes:
    """What one node's NICs have carried since the lab was built, in bytes."""

    storage_read: int = 0
    storage_written: int = 0
    compute_read: int = 0
    compute_written: int = 0

    def since(self, before: NodeBytes) -> NodeBytes:
        return NodeBytes(
            self.storage_read - before.storage_read,
            self.storage_written - before.storage_written,
            self.compute_read - before.compute_read,
            self.compute_written - before.compute_written,
        )


def namespace(prefix: str, name: str) -> str:
    return f"{prefix}-{name}"


def enter_words(prefix: str, name: str) -> Command:
    """What to put before a command so that it runs on a node.

    Not `ip netns exec`: that mounts another /sys, and SGLang then dies looking for its cgroup.
    """
    return ("nsenter", f"--net={NETNS_DIR}/{namespace(prefix, name)}", "--")


def build_commands(prefix: str, nodes: Sequence[Node]) -> list[Command]:
    """Everything, in order; run as root when no namespace of this prefix exists."""
    switch = namespace(prefix, SWITCH)
    commands: list[Command] = [("ip", "netns", "add", switch), *_up(switch, "lo")]
    for network in NETWORKS:
        commands.append(("ip", "-n", switch, "link", "add", network, "type", "bridge"))
        commands += _up(switch, network)
    for node in nodes:
        name = namespace(prefix, node.name)
        commands += [("ip", "netns", "add", name), *_up(name, "lo")]
        for network in NETWORKS:
            commands += _connect(switch, name, node, network)
    return commands


def shape_commands(prefix: str, nodes: Iterable[Node], bits_per_s: int) -> list[Command]:
    """Give every node's storage NIC this rate, in both directions."""
    bucket = ("tbf", "rate", f"{bits_per_s}bit", "burst", BURST, "latency", LATENCY)
    return [
        ("tc", "-n", where, "qdisc", "replace", "dev", device, "root", *bucket)
        for where, device in _ends(prefix, nodes)
    ]


def unshape_commands(prefix: str, nodes: Iterable[Node]) -> list[Command]:
    """Back to no queue at all, which is a veth's default."""
    return [
        ("tc", "-n", where, "qdisc", "replace", "dev", device, "root", "noqueue")
        for where, device in _ends(prefix, nodes)
    ]


def counters_command(prefix: str) -> Command:
    return ("ip", "-n", namespace(prefix, SWITCH), "-s", "-j", "link", "show")


def parse_counters(text: str, nodes: Iterable[Node]) -> dict[str, NodeBytes]:
    """By node. What the switch sends on a node's port is what the node reads."""
    try:
        links: dict[str, Any] = {link["ifname"]: link for link in json.loads(text)}
        found = {}
        for node in nodes:
            storage, compute = (links[_port(node, network)]["stats64"] for network in NETWORKS)
            found[node.name] = NodeBytes(
                storage_read=storage["tx"]["bytes"],
                storage_written=storage["rx"]["bytes"],
                compute_read=compute["tx"]["bytes"],
                compute_written=compute["rx"]["bytes"],
            )
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"`ip -s -j link` gave no counters for every node: {error!r}") from error
    return found


def _up(where: str, device: str) -> list[Command]:
    return [("ip", "-n", where, "link", "set", device, "up")]


def _connect(switch: str, name: str, node: Node, network: Network) -> list[Command]:
    port = _port(node, network)
    pair = ("link", "add", network, "type", "veth", "peer", "name", port, "netns", switch)
    address = f"{node.address(network)}/24"
    return [
        ("ip", "-n", name, *pair),
        ("ip", "-n", switch, "link", "set", port, "master", network, "up"),
        ("ip", "-n", name, "addr", "add", address, "dev", network),
        *_up(name, network),
    ]


def _ends(prefix: str, nodes: Iterable[Node]) -> list[tuple[str, str]]:
    """(namespace, device) of both ends of each node's storage pair."""
    ends = []
    for node in nodes:
        ends.append((namespace(prefix, node.name), "storage"))
        ends.append((namespace(prefix, SWITCH), _port(node, "storage")))
    return ends


def _port(node: Node, network: Network) -> str:
    return f"{node.name}-{network[0]}"
