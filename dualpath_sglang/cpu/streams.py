"""`torch.cpu.Stream` and `torch.cpu.Event` miss two methods that SGLang calls.

CPU work is synchronous, so a stream is always done and no time passes between events.
"""

from __future__ import annotations

import torch


def complete_cpu_streams() -> None:
    """Add the missing methods; leaves a torch that has them alone. Idempotent."""
    if not hasattr(torch.cpu.Stream, "synchronize"):
        torch.cpu.Stream.synchronize = lambda self: None
    if not hasattr(torch.cpu.Event, "elapsed_time"):
        torch.cpu.Event.elapsed_time = lambda self, end: 0.0
