"""What a second path is made of: the host pool's bookkeeping, the threads that move bytes.

all:     StoreReader <- Loads
prefill: PeerClient -> Puller (one for each peer) -> Load
decode:  ExportServer <- ExportTable <- Staging
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dualpath_sglang.contract.clock import Clock
from dualpath_sglang.contract.engine_config import EngineConfig
from dualpath_sglang.key_layout import key_layout_of
from dualpath_sglang.metrics import PrometheusMeter
from dualpath_sglang.secondpath import adapter, sglang_pool
from dualpath_sglang.secondpath.bucket import TokenBucket
from dualpath_sglang.secondpath.export_server import ExportServer
from dualpath_sglang.secondpath.exports import ExportTable
from dualpath_sglang.secondpath.faults import Faults, fail_store, faulty
from dualpath_sglang.secondpath.holds import PageHolds
from dualpath_sglang.secondpath.loads import Loads
from dualpath_sglang.secondpath.meter import Meter
from dualpath_sglang.secondpath.protocol import Hello
from dualpath_sglang.secondpath.pull import PeerClient
from dualpath_sglang.secondpath.puller import Puller, Tools
from dualpath_sglang.secondpath.requests import Requests
from dualpath_sglang.secondpath.staging import Limits, Staging
from dualpath_sglang.secondpath.store_reader import StoreReader
from dualpath_sglang.secondpath.store_tap import StoreTap, spoil
from dualpath_sglang.secondpath.transport import MooncakeTransport
from dualpath_sglang.sglang_types import Scheduler

if TYPE_CHECKING:
    from dualpath_sglang.secondpath.radix_cache import DualPathRadixCache


class Machinery:
    """Parts only; what happens with them is `engine.SecondPath`. client: prefill engines. server,
    exports, staging: decode engines."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: DualPathRadixCache,
        role: str,
        config: EngineConfig,
        clock: Clock,
    ) -> None:
        """Raises StartupError where a port or the transfer engine cannot be had."""
        self.scheduler, self.cache, self.role, self.config = scheduler, cache, role, config
        self.clock = clock
        self.meter: Meter = PrometheusMeter()
        self.faults = Faults(config.fault)
        self.holds = PageHolds()
        self.requests = Requests()
        self.pool = sglang_pool.host_pool(cache)
        self.keys = key_layout_of(sglang_pool.store_of(cache))
        fail_store(sglang_pool.store_of(cache), self.faults)
        self.fingerprint = sglang_pool.fingerprint(scheduler, cache, self.pool, self.keys)
        self.nonce = secrets.token_hex(8)
        self.host = config.export_host or adapter.local_host()
        self.deadline_s = config.staging_deadline_s if role == "decode" else config.pull_deadline_s
        self._start_threads()

    def _start_threads(self) -> None:
        config, pool = self.config, self.pool
        self.transport = MooncakeTransport(
            self.host, config.peer_protocol, config.peer_device, pool.base, pool.size
        )
        self.loads = Loads(
            self.cache,
            self.holds,
            self.meter,
            self.clock,
            self.deadline_s,
            ends_with_plan=self.role == "decode",
        )
        self.tap = tap = StoreTap(self.cache, self.role, pool, self.meter, self.faults)
        bucket = TokenBucket(config.store_bytes_per_s, self.clock)
        self.reader = StoreReader(
            tap.read, pool.bytes_per_page, bucket, self.clock, self.loads.quarantine
        )
        self.client: PeerClient | None = None
        self.server: ExportServer | None = None
        self.staging: Staging | None = None
        if self.role == "prefill":
            tools = Tools(
                faulty(self.transport, self.faults),
                pool,
                TokenBucket(config.peer_bytes_per_s, self.clock),
                self.clock,
                self.meter,
                self.loads.quarantine,
                config.pull_deadline_s,
            )
            self.client = PeerClient(
                self.fingerprint, lambda address: Puller(address, tools), self.clock
            )
        else:
            self._start_exports()

    def _start_exports(self) -> None:
        config, pool = self.config, self.pool
        self.exports = ExportTable(self.holds, config.lease_s)
        hello = Hello(
            self.fingerprint,
            self.nonce,
            self.transport.session,
            pool.base,
            pool.page_bytes,
            pool.v_offset,
            pool.pages,
        )
        self.server = ExportServer(self.exports, hello, self.host, config.export_port)
        limits = Limits(
            config.staging_deadline_s, int(pool.pages * config.pin_fraction), config.verify_pages
        )
        self.staging = Staging(
            self.cache,
            pool,
            self.exports,
            self.meter,
            limits,
            lambda: self.reader.progress_at,
            self.requests.settle,
            ThreadPoolExecutor(1, "dualpath-sums").submit,
        )
        if "peer_corrupt" in self.faults:
            self.staging.before_ready = lambda slots: spoil(pool, slots)
