"""`python -m dualpath_sglang.launch ...`: SGLang's server, on a machine without a GPU too.

Where SGLang's children are spawned they import this module again as `__mp_main__`, so what stands
at its top runs in every process of an engine, before the first import of SGLang.
"""

from __future__ import annotations

import os
import sys

from dualpath_sglang.cpu.shims import cpu_requested, install_shims

if cpu_requested():
    install_shims()


def main() -> None:
    """Parse SGLang's own flags and serve until a signal; the plugin loads by its entry point."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    from dualpath_sglang.plugin import verify_installed

    load_plugins()
    verify_installed()
    try:
        run_server(prepare_server_args(sys.argv[1:]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
