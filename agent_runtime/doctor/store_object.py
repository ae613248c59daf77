"""One page of random bytes in the store, in the hands of a process that this one never imports.

That process removes the objects when its standard input ends, so also when the doctor is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import orjson

from agent_runtime.stack.commands import mooncake_env
from dualpath_sglang.contract.addresses import split_host_port

STEP_S = 20.0
"""A step that takes longer has failed; Mooncake itself gives up after 30 to 90 s."""
KILL_S = 3.0


@dataclass(frozen=True)
class Spec:
    """`keys`: the objects of the page, each `part_bytes` long, of the bytes of `seed`."""

    master: str
    protocol: str
    device: str
    tenant: str
    seed: str
    part_bytes: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """error: empty when it went well."""

    name: str
    error: str
    seconds: float = 0.0


class StoreObject(Protocol):
    async def step(self) -> Step:
        """The next of mount, write, find, read; after a failed one only `remove` is left."""
        ...

    async def remove(self) -> Step:
        """The objects are gone afterwards, or the step says why not. Call it always."""
        ...


class ProbeObject:
    """The real one: `python -m dualpath_sglang.probe_object`."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._process: asyncio.subprocess.Process | None = None
        self._said: deque[str] = deque(maxlen=1)
        self._listener: asyncio.Task[None] | None = None
        self._mounted = False

    async def step(self) -> Step:
        if self._process is None:
            await self._start()
        step = await self._line()
        self._mounted = self._mounted or (step.name == "mount" and not step.error)
        return step

    async def remove(self) -> Step:
        process = self._process
        if process is None:
            return Step("remove", "")
        assert process.stdin is not None
        process.stdin.close()
        # Without a client nothing was written, and the next line may be minutes away.
        step = await self._removal() if self._mounted else Step("remove", "")
        await self._end(process, KILL_S if self._mounted else 0.0)
        return step

    async def _removal(self) -> Step:
        step = await self._line()
        while step.name not in ("remove", ""):  # lines of steps that ended too late
            step = await self._line()
        return step

    async def _end(self, process: asyncio.subprocess.Process, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._listener is not None:
            self._listener.cancel()

    async def _start(self) -> None:
        spec = self._spec
        host = local_address(spec.master)
        words = ["--master", spec.master, "--host", host]
        words += ["--protocol", spec.protocol, "--device-name", spec.device]
        words += ["--tenant", spec.tenant, "--seed", spec.seed]
        words += ["--part-bytes", str(spec.part_bytes), *spec.keys]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dualpath_sglang.probe_object", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | mooncake_env(spec.protocol, host),
            # Ctrl-C ends the doctor; this one then still has to remove the objects.
            start_new_session=True,
        )
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Mooncake logs to standard error; its last error says more than its code."""
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").strip()
            if text.startswith("E") or "Error" in text:
                self._said.append(text)

    async def _line(self) -> Step:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(STEP_S):
                async for line in self._process.stdout:
                    if line.startswith(b'{"step"'):
                        return self._step(orjson.loads(line))
        except TimeoutError:
            return Step("", self._with_log(f"no end of it in {STEP_S:g} s"))
        return Step("", self._with_log("the process that writes the page has died"))

    def _step(self, tree: dict[str, object]) -> Step:
        error = str(tree["error"])
        seconds = tree["seconds"]
        assert isinstance(seconds, int | float)
        return Step(str(tree["step"]), self._with_log(error) if error else "", float(seconds))

    def _with_log(self, text: str) -> str:
        return f"{text} (Mooncake: {self._said[0][:300]})" if self._said else text


def local_address(peer: str) -> str:
    """The address of this machine from which `host:port` is reached; nothing is sent."""
    try:
        host, port = split_host_port(peer)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return "127.0.0.1"
