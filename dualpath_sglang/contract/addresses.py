"""Addresses as text: IPv6 ones stand in brackets where a port follows."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_NAME = re.compile(r"[0-9A-Za-z_]([0-9A-Za-z_.-]{0,252}[0-9A-Za-z_.])?")


def host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if is_ipv6(host) else f"{host}:{port}"


def http_url(host: str, port: int) -> str:
    return f"http://{host_port(host, port)}"


def is_http_url(text: str) -> bool:
    """http or https with a host, and a port that is a number if there is one."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 -- raises for what is no port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def is_host(text: str) -> bool:
    """A name, an IPv4 address, or an IPv6 address without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return True


def is_ipv6(host: str) -> bool:
    """An IPv6 address; names are not looked up."""
    return ":" in host


def is_loopback(host: str) -> bool:
    """Reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def split_host_port(text: str) -> tuple[str, int]:
    """The inverse of `host_port`. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or not parts.port or parts.netloc != text or parts.path:
        raise ValueError(f"{text!r} is not host:port")
    return parts.hostname, parts.port
