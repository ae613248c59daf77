"""Pulling planned pages from decode engines: one connection and one reading thread per peer.

fetch(load, peer) -> want -> ready* -> read, check -> load.landed
                                       any trouble -> load.leave_peer / refused / lost: store
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dualpath_sglang.contract.addresses import split_host_port
from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.errors import StartupError
from dualpath_sglang.secondpath.load import Key, Load, State
from dualpath_sglang.secondpath.protocol import (
    HASH_DIGITS,
    MAX_LINE,
    Alive,
    Done,
    End,
    Hello,
    Message,
    ProtocolError,
    Ready,
    Want,
)
from dualpath_sglang.secondpath.puller import Job, Puller
from dualpath_sglang.secondpath.wire import Line, LoopThread

log = logging.getLogger("dualpath")

CONNECT_S = 2.0
RETRY_S = 1.0
"""A peer that could not be reached is not tried again before."""
FORGET_S = 60.0
"""A peer that has been gone for so long has its thread ended: restarted ones have other ports."""


@dataclass
class _Peer:
    puller: Puller
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    line: Line | None = None
    listener: asyncio.Task[None] | None = None
    hello: Hello = field(default_factory=lambda: Hello(""))
    down_until: float = 0.0
    trouble: str = ""
    loads: dict[Key, Load] = field(default_factory=dict)


class PeerClient:
    """Runs in its own thread from construction on. `fetch` and `done` never block."""

    def __init__(
        self,
        fingerprint: str,
        make_puller: Callable[[str], Puller],
        clock: Clock,
    ) -> None:
        self._fingerprint = fingerprint
        self._make_puller = make_puller
        self._clock = clock
        self._peers: dict[str, _Peer] = {}
        self._thread = LoopThread("dualpath-pull")

    @property
    def alive(self) -> bool:
        return self._thread.alive and all(p.puller.alive for p in list(self._peers.values()))

    def warm(self, peer: str) -> None:
        """Connect to `host:port` before there is anything to fetch."""
        self._thread.spawn(self._reach(peer))

    def reach(self, peer: str, timeout_s: float) -> Hello:
        """What `host:port` says of itself; blocks. Raises OSError, TimeoutError."""
        found: _Peer = self._thread.call(self._reach(peer), timeout_s)
        if found.line is None:
            raise ConnectionError(found.trouble or "the connection broke")
        return found.hello

    def fetch(self, load: Load, peer: str, lo: int, hi: int) -> None:
        """Pull pages [lo, hi) of the prompt into `load`, from `host:port`."""
        self._thread.spawn(self._fetch(load, peer, lo, hi))

    def done(self, key: Key, peer: str) -> None:
        """Nothing of this exchange is read any more."""
        self._thread.spawn(self._done(key, peer))

    def stop(self) -> None:
        self._thread.stop()
        for peer in self._peers.values():
            peer.puller.stop()

    # --- in the loop's thread -----------------------------------------------------------------

    async def _fetch(self, load: Load, address: str, lo: int, hi: int) -> None:
        key = load.origin.key
        assert key is not None
        peer = await self._reach(address)
        if peer.line is None:
            load.leave_peer("peer_unreachable")
            return
        if load.settled:
            peer.line.send(Done(*key))
            return
        peer.loads[key] = load
        peer.line.send(Want(*key, lo, hi))

    async def _done(self, key: Key, address: str) -> None:
        peer = self._peers.get(address)
        if peer is None:
            return
        fetched = peer.loads.pop(key, None)
        if fetched is not None and peer.line is not None:
            peer.line.send(Done(*key))

    async def _reach(self, address: str) -> _Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = _Peer(self._make_puller(address))
        async with peer.lock:
            if peer.line is None and self._clock.now() >= peer.down_until:
                await self._connect(peer, address)
        return peer

    async def _connect(self, peer: _Peer, address: str) -> None:
        line = None
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    *split_host_port(address), limit=MAX_LINE
                )
                line = Line(reader, writer, asyncio.get_running_loop())
                line.send(Hello(self._fingerprint))
                hello = await anext(line.messages())
            self._accept(peer, hello)
        except (OSError, ProtocolError, StopAsyncIteration, ValueError, StartupError) as error:
            if line is not None:
                line.close()
            peer.down_until = self._clock.now() + RETRY_S
            peer.trouble = str(error) or type(error).__name__
            log.warning("DualPath: no pages from %s: %s", address, peer.trouble)
            self._forget_later(address)
            return
        peer.line = line
        peer.listener = asyncio.create_task(self._listen(peer, line, address))

    def _forget_later(self, address: str) -> None:
        asyncio.get_running_loop().call_later(FORGET_S, self._forget, address)

    def _forget(self, address: str) -> None:
        peer = self._peers.get(address)
        gone = peer is not None and peer.line is None and not peer.lock.locked()
        if peer is not None and gone and not peer.loads:
            del self._peers[address]
            peer.puller.stop()

    def _accept(self, peer: _Peer, hello: Message) -> None:
        """Raises ProtocolError for a peer whose pages are not ours."""
        if not isinstance(hello, Hello):
            raise ProtocolError(f"{hello} instead of hello")
        if hello.fingerprint != self._fingerprint:
            raise ProtocolError(f"its pages are {hello.fingerprint!r}, ours {self._fingerprint!r}")
        peer.hello = hello
        peer.puller.meet(hello)

    async def _listen(self, peer: _Peer, line: Line, address: str) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                async for message in line.messages():
                    self._take(peer, message)
        except ProtocolError as error:
            log.warning("DualPath: connection to a peer closed: %s", error)
        except Exception:
            log.exception("DualPath: connection to a peer closed")
        peer.line = None
        loads, peer.loads = list(peer.loads.values()), {}
        for load in loads:
            load.leave_peer("peer_lost")
        line.close()
        self._forget_later(address)

    def _take(self, peer: _Peer, message: Message) -> None:
        match message:
            case Ready(room, plan_id) if load := peer.loads.get((room, plan_id)):
                load.progress_at = self._clock.now()
                self._queue(peer, load, message)
            case Alive(room, plan_id) if load := peer.loads.get((room, plan_id)):
                if load.waits(State.WAIT_PEER):
                    load.progress_at = self._clock.now()
            case End(room, plan_id, reason) if load := peer.loads.get((room, plan_id)):
                # Behind the pages announced before it.
                peer.puller.put(Job(peer.hello, load, end=reason or "peer_short"))
            case Ready() | Alive() | End():
                pass  # of an exchange that is over here
            case _:
                raise ProtocolError(f"unexpected {message}")

    def _queue(self, peer: _Peer, load: Load, ready: Ready) -> None:
        pages, slots, sums = [], [], []
        for i, (slot, name) in enumerate(zip(ready.slots, ready.hashes, strict=True)):
            page = ready.lo + i - load.origin.first_page
            if not 0 <= page < load.pages:
                continue
            if load.hashes[page][:HASH_DIGITS] != name:
                load.leave_peer("peer_hash", [page])
                continue
            pages.append(page)
            slots.append(slot)
            sums.append(ready.sums[i] if ready.sums else "")
        until = self._clock.now() + ready.lease_s
        peer.puller.put(Job(peer.hello, load, pages, slots, sums, until))
