"""Placeholders appear only where the real thing is missing. Each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path


def python(code: str, path: Path | None = None) -> str:
    paths = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else ""
    done = subprocess.run(
        [sys.executable, "-c", paths + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_missing_sgl_kernel_imports_and_raises_when_used() -> None:
    out = python("""
        from dualpath_sglang.cpu.shims import install_shims
        print(install_shims()[0])
        import sgl_kernel
        from sgl_kernel.kvcacheio import transfer_kv_direct
        try:
            transfer_kv_direct(1)
        except NotImplementedError as error:
            print(error)
    """)
    assert out.splitlines()[0] == "sgl_kernel"
    assert "sgl_kernel.kvcacheio.transfer_kv_direct has no CPU build" in out


def test_a_real_sgl_kernel_is_never_shadowed(tmp_path: Path) -> None:
    (tmp_path / "sgl_kernel.py").write_text("REAL = True\n")
    code = """
        from dualpath_sglang.cpu.shims import install_shims
        assert "sgl_kernel" not in install_shims()
        import sgl_kernel
        print(sgl_kernel.REAL)
    """
    assert python(code, tmp_path) == "True"


def test_installing_twice_adds_nothing() -> None:
    assert (
        python("""
        from dualpath_sglang.cpu.shims import install_shims
        install_shims()
        print(install_shims())
    """)
        == "[]"
    )


def test_torchvision_imports_for_transformers() -> None:
    assert (
        python("""
        from dualpath_sglang.cpu.shims import install_shims
        install_shims()
        from transformers import AutoImageProcessor
        print("ok")
    """)
        == "ok"
    )


def test_streams_get_what_they_lack() -> None:
    assert (
        python("""
        import torch
        from dualpath_sglang.cpu.streams import complete_cpu_streams
        complete_cpu_streams(); complete_cpu_streams()
        print(torch.cpu.Stream().synchronize(), torch.cpu.Event().elapsed_time(None))
    """)
        == "None 0.0"
    )
