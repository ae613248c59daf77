"""`python -m benchmarks.rig.engine ...`: an engine whose polling threads step back.

The same in every arm. It belongs to CPU support; once `CPU_HOOKS` has `POLLING_HOOKS` this is the
plain launcher.
"""

from __future__ import annotations

# First: it puts the shims in place that every later import needs.
from dualpath_sglang import launch
from dualpath_sglang.cpu import hooks, polling


def add_hooks() -> None:
    """Before the plugin reads the table; SGLang's children are forks and inherit it."""
    missing = [hook for hook in polling.POLLING_HOOKS if hook not in hooks.CPU_HOOKS]
    hooks.CPU_HOOKS = (*hooks.CPU_HOOKS, *missing)


if __name__ == "__main__":
    add_hooks()
    launch.main()
