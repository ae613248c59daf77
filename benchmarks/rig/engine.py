"""`python -m benchmarks.rig.engine ...`: an engine whose polling threads step back.

The same in every arm. Of the rig only: it helps where threads that poll outnumber the cores, and
only with the kernel's autogroups off (`autogroup.py`).
"""

from __future__ import annotations

# `launch` puts the shims in place that every import of SGLang needs; none comes before it.
from benchmarks.rig import polling
from dualpath_sglang import launch
from dualpath_sglang.cpu import hooks


def add_hooks() -> None:
    """Before the plugin reads the table; SGLang's children are forks and inherit it."""
    missing = [hook for hook in polling.POLLING_HOOKS if hook not in hooks.CPU_HOOKS]
    hooks.CPU_HOOKS = (*hooks.CPU_HOOKS, *missing)


if __name__ == "__main__":
    add_hooks()
    launch.main()
