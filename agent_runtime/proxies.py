"""Which proxy the environment names for an address (HTTP_PROXY, ALL_PROXY, NO_PROXY, ...)."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from dualpath_sglang.contract.addresses import is_loopback


def is_local(url: str) -> bool:
    """On this machine: no proxy is asked for what it would look for on its own."""
    return is_loopback(urlsplit(url).hostname or "")


def proxy_of(url: str) -> str | None:
    """`scheme://host:port` without credentials; None for a direct connection."""
    parts = urlsplit(url)
    if is_local(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    named = urllib.request.getproxies()
    found = named.get(parts.scheme) or named.get("all")
    if not found:
        return None
    proxy = urlsplit(found if "//" in found else f"//{found}")
    return f"{proxy.scheme or 'http'}://{proxy.netloc.rpartition('@')[2]}"
