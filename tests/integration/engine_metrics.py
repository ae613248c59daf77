"""Counters of one engine, read from its /metrics."""

from __future__ import annotations

import re
import urllib.request


def kv_bytes(engine_url: str) -> dict[str, int]:
    """`dualpath_kv_bytes_total` by path; a path that was never used is 0."""
    with urllib.request.urlopen(f"{engine_url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    paths = ("store_to_prefill", "store_to_decode", "decode_to_prefill", "prefill_to_decode")
    found = dict.fromkeys(paths, 0)
    pattern = r'^dualpath_kv_bytes_total\{path="(\w+)"\} (\S+)$'
    for path, value in re.findall(pattern, text, flags=re.MULTILINE):
        found[path] += int(float(value))
    return found
