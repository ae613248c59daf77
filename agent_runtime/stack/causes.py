"""The likely cause of a component's end, read from its last log lines."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"libibverbs\.so",
        "libibverbs is missing: apt-get install libibverbs1",
    ),
    (
        r"mooncake.transfer.engine.*(both|non.cuda.*and)",
        "both Mooncake wheels are installed; uninstall both, then install the one you need",
    ),
    (
        r"[Aa]ddress already in use|EADDRINUSE|Errno 98|[Pp]ort.{0,40}(in use|is not available)",
        "a port is in use by another process; find it with `ss -ltnp`, or set the port to 0",
    ),
    (
        r"unrecognized arguments|invalid choice|expected one argument|: error: argument",
        "a flag SGLang does not know; look at `flags` of this engine group in the configuration",
    ),
    (
        r"config\.json.{0,10}(not found|is missing)|No such file.{0,120}config\.json"
        r"|does not appear to have a file named|Repo id must be",
        "model.path is no complete model folder (config.json, weights, tokenizer)",
    ),
    (
        r"No module named '?(sglang|torch|mooncake|dualpath_sglang)",
        "a package is missing from this Python environment: run `make setup` (CPU) or "
        "`pip install dualpath-sglang` (GPU)",
    ),
    (
        r"CUDA error|no CUDA GPUs|Torch not compiled with CUDA|libcuda|NVIDIA driver",
        "CUDA is not usable here; for a machine without a GPU set `cpu: true` (--cpu)",
    ),
    (
        r"CUDA out of memory|MemoryError|[Cc]annot allocate memory|not enough .*memory|bad_alloc",
        "out of memory: lower max_total_tokens, hicache_ratio, store.segment_bytes or the number "
        "of engines",
    ),
    (
        r"(master|RPC).{0,60}([Cc]onnection refused|[Ff]ailed to connect)",
        "the store's master cannot be reached; look at the log of `master`",
    ),
    (r"Permission denied", "permission denied; the file or folder is named in the log lines above"),
)
"""(pattern, cause), the first match wins."""


CAUSE_LINES = 60
"""How many of the last lines are searched: SGLang's reason often stands above long tracebacks."""
_EXCEPTION = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception): .{1,200})")


def likely_cause(lines: Sequence[str], exit_code: int | None) -> str:
    """One sentence, or "" when nothing is known: a known pattern, else the last exception."""
    text = "\n".join(lines)
    for pattern, cause in CAUSES:
        if re.search(pattern, text):
            return cause
    exceptions = _EXCEPTION.findall(text)
    if exceptions:
        return f"its log ends with {exceptions[-1].strip()}"
    if exit_code == -signal.SIGKILL:
        return (
            "killed from outside (signal 9): by hand, or by the kernel for lack of memory (dmesg)"
        )
    if exit_code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
        return f"crashed in native code ({signal.Signals(-exit_code).name})"
    return ""


def describe_exit(exit_code: int | None) -> str:
    """An exit code in words: `exited with code 1`, `was killed by SIGKILL`."""
    if exit_code is None:
        return "ended"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"
