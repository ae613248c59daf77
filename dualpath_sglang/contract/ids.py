"""Distinct ids are distinct types, made at the boundary where they enter the program."""

from __future__ import annotations

from typing import NewType

SessionId = NewType("SessionId", str)
EngineId = NewType("EngineId", str)
RequestId = NewType("RequestId", str)
"""32 lower-case hex characters. Always this length: SGLang aborts by id *prefix*."""
BootstrapRoom = NewType("BootstrapRoom", int)
"""Random in [0, 2**63): pairs the prefill and the decode half of one request."""
