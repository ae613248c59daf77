"""Import-time placeholders that let SGLang import on a machine without a GPU.

They must exist before the first `import sglang`, which is earlier than plugins load, so
`dualpath_sglang.launch` (the engine's main module, re-imported by every spawned child)
calls `install_shims()` at import. A CUDA installation is never touched: a real
`sgl_kernel` or a torchvision with working operators wins.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any, NoReturn

CPU_ENV = "SGLANG_USE_CPU_ENGINE"


def cpu_requested() -> bool:
    """True when this process was started as a CPU engine."""
    return os.environ.get(CPU_ENV, "").lower() in ("1", "true")


class _Placeholder(ModuleType):
    """A module whose every public attribute is a function that raises when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        where = f"{self.__name__}.{name}"

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise NotImplementedError(
                f"{where} has no CPU build; this model or setting needs a GPU kernel"
            )

        missing.__name__ = name
        return missing


class _PlaceholderFinder:
    """Serves `sgl_kernel` and its submodules as placeholders."""

    root = "sgl_kernel"
    absent = ("sgl_kernel.scalar_type",)  # SGLang has its own stand-in when this fails to import

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self.absent:
            return None
        if name != self.root and not name.startswith(self.root + "."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def install_shims() -> list[str]:
    """Put the placeholders in place; returns what was added. Idempotent."""
    added = []
    if importlib.util.find_spec("sgl_kernel") is None:
        sys.meta_path.append(_PlaceholderFinder())  # last: anything real wins
        added.append("sgl_kernel")
    if _define_torchvision_ops():
        added.append("torchvision operators")
    return added


_torchvision_library: Any = None  # a torch Library un-registers its schemas when collected


def _define_torchvision_ops() -> bool:
    """Declare the two schemas that the registry's torchvision wheel expects from its
    CUDA extension. transformers imports torchvision for image models only."""
    global _torchvision_library
    if _torchvision_library is not None or "torchvision" in sys.modules:
        return False
    import torch

    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    )
    _torchvision_library = library
    return True
