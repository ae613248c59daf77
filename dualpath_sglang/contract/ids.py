"""Distinct ids are distinct types, made at the boundary where they enter the program."""

from __future__ import annotations

from typing import NewType

SessionId = NewType("SessionId", str)
"""Unique among the sessions of one owner."""
OwnerId = NewType("OwnerId", str)
"""Whose key it was; the name that the configuration gives the key, never the key itself."""
EngineId = NewType("EngineId", str)
RequestId = NewType("RequestId", str)
"""32 lower-case hex characters. Always this length: SGLang aborts by id *prefix*."""
BootstrapRoom = NewType("BootstrapRoom", int)
"""Random in [0, 2**63): pairs the prefill and the decode half of one request."""
