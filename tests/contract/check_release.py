"""What would break with another release of SGLang: `make check-sglang VERSION=x`.

Runs in an environment where that release lies beside everything else that is installed. Exit
status 1: something does not fit. That all fits does not mean that it works: engines have to run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from fit import counts, every_hook, misfits
from our_use import ROOT, imports, sources

from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.hooks import check_targets


def main(version: str) -> int:
    package = importlib.util.find_spec("sglang")  # finds it, does not run it
    assert package is not None
    assert package.origin is not None
    root = Path(package.origin).parents[1]
    if (here := importlib.metadata.version("sglang")) != version:
        raise SystemExit(f"this is sglang {here} in {root}, not {version}")
    number = counts()
    broken = 0
    for group, found in misfits(root).items():
        more = f" with {number['attributes']} attributes" if group == "classes" else ""
        broken += _say(f"{number[group]} {group}{more}, by source", found)
    broken += _say("imports, by importing", list(_import_errors()))
    _say("our patches for upstream", list(_patches(root)))
    _say("its own pins that differ from what is installed here", list(_pins()))
    verdict = f"{broken} things do not fit" if broken else "fits"
    print(f"\nsglang {version}: {verdict}")
    return 1 if broken else 0


def _say(what: str, found: list[str]) -> int:
    print(f"{what}: {'ok' if not found else ''}")
    for text in found:
        print(f"  {text}")
    return len(found)


def _import_errors() -> Iterator[str]:
    install_shims()
    modules = {use.module for file in sources() for use in imports(file)}
    for module in sorted(modules):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:
            yield f"{module}: {type(error).__name__}: {error}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from check_targets(every_hook())


def _patches(root: Path) -> Iterator[str]:
    """What became of each: applies still, or not any more."""
    for patch in sorted((ROOT / "patches").glob("*/*.patch")):
        with tempfile.TemporaryDirectory() as copy:
            for name in re.findall(r"^--- a/python/(\S+)", patch.read_text("utf-8"), re.MULTILINE):
                target = Path(copy, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                if (root / name).is_file():
                    target.write_bytes((root / name).read_bytes())
            command = ["git", "apply", "--check", "-p2", str(patch)]
            done = subprocess.run(command, cwd=copy, capture_output=True, check=False)
        state = "applies" if done.returncode == 0 else "does not apply: mended there, or moved"
        yield f"{patch.parent.name}/{patch.name} {state}"


def _pins() -> Iterator[str]:
    for text in importlib.metadata.requires("sglang") or ():
        found = re.match(r"([\w.-]+)(?:\[[^]]*])?==([\w.+-]+)$", text)
        if found is None:
            continue
        try:
            here = importlib.metadata.version(found[1])
        except importlib.metadata.PackageNotFoundError:
            continue
        if here.split("+")[0] != found[2]:
            yield f"{found[1]}: it wants {found[2]}, here is {here}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1]))
