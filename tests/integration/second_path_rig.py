"""One prefill and one decode engine, driven directly with plans of a test's choice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent_runtime.config import EngineGroup, ExitPolicies, ModelConfig, StackConfig
from agent_runtime.stack.stack import RunningStack, Stack
from agent_runtime.stack.status import ComponentState
from dualpath_sglang.contract.engine_info import EngineInfo, from_server_info
from dualpath_sglang.contract.plan import Plan, to_kv_hints

CHECKED = {"DUALPATH_ENGINE_CHECK": "always"}
"""Every idle round compares the host pool's books."""
BOOKS = CHECKED | {"SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python"}
"""Lost pages are seen too: only the Python tree core can be walked. SGLang's default is in Rust."""


Stage = tuple[str, str]
"""How far a turn is: an engine's role, and the counter of it that shows it by growing."""
STAGING: Stage = ("decode", "kv_bytes_total.store_to_decode")
STAGED: Stage = ("decode", "staging_seconds_count")
PULLING: Stage = ("prefill", "kv_bytes_total.decode_to_prefill")

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """Both engines' answers to one request. Reports are empty where there was an error."""

    tokens: list[int]
    prefill: dict[str, Any]
    decode: dict[str, Any]
    errors: list[str]
    seconds: float


@dataclass
class Duo:
    """A running pair; counters start at zero with it."""

    stack: RunningStack
    page: int
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def url(self, role: str) -> str:
        return next(e.url for e in self.stack.engines if e.role == role)

    def component(self, role: str) -> ComponentState:
        name = next(e.name for e in self.stack.engines if e.role == role)
        return self.stack.component(name)

    def info(self, role: str) -> EngineInfo:
        found = from_server_info(_get(f"{self.url(role)}/server_info"))
        assert found is not None
        return found

    def plan(self, n: int, k: int, deadline_ms: int = 120_000) -> Plan:
        info = self.info("decode")
        name = f"{self.rng.getrandbits(64):016x}"
        return Plan(name, n, k, self.page, info.exports, deadline_ms, info.fingerprint)

    def ask(
        self,
        tokens: list[int],
        plan: Plan | None,
        *,
        decode_plan: Plan | None = None,
        output: int = 8,
        abort_after_s: float | None = None,
        timeout_s: float = 90.0,
    ) -> Answer:
        """`plan` goes to both, unless `decode_plan` is another; greedy."""
        body = self._body(tokens, output)
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as both:
            sent = [
                both.submit(_post, f"{self.url(role)}/generate", body | _hints(p), timeout_s)
                for role, p in (("prefill", plan), ("decode", decode_plan or plan))
            ]
            if abort_after_s is not None:
                time.sleep(abort_after_s)
                for role in ("prefill", "decode"):
                    _post(f"{self.url(role)}/abort_request", {"rid": body["rid"]}, 30)
            on_p, on_d = (reply.result() for reply in sent)
        errors = [str(r["error"]) for r in (on_p, on_d) if "error" in r]
        return Answer(
            on_d.get("output_ids", []),
            _report(on_p),
            _report(on_d),
            errors,
            time.monotonic() - began,
        )

    def hang_up(self, tokens: list[int], plan: Plan | None, when: Stage | float) -> None:
        """Ask both for a stream, and close both connections at a stage or after so many seconds,
        with no other word."""
        before = 0.0 if isinstance(when, float) else self.count(*when)
        body = self._body(tokens, 1000) | {"stream": True} | _hints(plan)
        with contextlib.ExitStack() as calls:
            for role in ("prefill", "decode"):
                call = http.client.HTTPConnection(self.url(role).removeprefix("http://"))
                calls.callback(call.close)
                call.request("POST", "/generate", json.dumps(body), JSON)
            if isinstance(when, float):
                time.sleep(when)
            else:
                self.wait_for(when, before)

    def _body(self, tokens: list[int], output: int) -> dict[str, Any]:
        prefill = next(e for e in self.stack.engines if e.role == "prefill")
        return {
            "rid": f"{self.rng.getrandbits(128):032x}",
            "input_ids": tokens,
            "sampling_params": {"temperature": 0, "max_new_tokens": output, "ignore_eos": True},
            "bootstrap_host": prefill.bootstrap_host,
            "bootstrap_port": prefill.bootstrap_port,
            "bootstrap_room": self.rng.getrandbits(62),
        }

    def without_plan(self, tokens: list[int], **kwargs: Any) -> Answer:
        return self.ask(tokens, None, **kwargs)

    def settle(self) -> None:
        """Until what was computed is in the store."""
        time.sleep(1.5)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Forget what is on the engines; refused while a page is in transfer or lent."""
        for role in ("prefill", "decode"):
            self.wait_idle(role, timeout_s, path="/flush_cache")

    def flush_if_idle(self, role: str) -> bool:
        return "error" not in _post(f"{self.url(role)}/flush_cache", None, 30)

    def wait_idle(self, role: str, timeout_s: float, path: str = "/flush_cache") -> None:
        end = time.monotonic() + timeout_s
        while "error" in (reply := _post(f"{self.url(role)}{path}", None, 30)):
            assert time.monotonic() < end, f"{role} does not become idle: {reply}"
            time.sleep(0.2)

    def let_go(self, timeout_s: float = 60.0) -> None:
        """Both engines are idle, and hold no page for anything but their caches. Flushes them."""
        self.flush(timeout_s)
        for role in ("prefill", "decode"):
            counts = self.counts(role)
            held = {name: counts.get(name, 0) for name in ("pinned", "quarantined", "exchanges")}
            assert not any(held.values()), (role, held)
            assert self.fallbacks(role).get("books_differ", 0) == 0, role

    def counts(self, role: str) -> dict[str, float]:
        """The plugin's counters, by name and label value: `kv_bytes_total.store_to_decode`."""
        with urllib.request.urlopen(f"{self.url(role)}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        pattern = r'^dualpath_(\w+?)(?:\{(?:\w+)="([^"]+)"\})? (\S+)$'
        return {
            f"{name}.{label}" if label else name: float(value)
            for name, label, value in re.findall(pattern, text, flags=re.MULTILINE)
        }

    def count(self, role: str, counter: str) -> float:
        return self.counts(role).get(counter, 0.0)

    def wait_for(self, stage: Stage, before: float = 0.0, timeout_s: float = 60.0) -> None:
        """Until a counter is more than it was."""
        end = time.monotonic() + timeout_s
        while self.count(*stage) <= before:
            assert time.monotonic() < end, f"{stage} never came"
            time.sleep(0.1)

    def moved(self, before: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Bytes by path since `before` (of `all_counts`)."""
        now = self.all_counts()
        found: dict[str, float] = {}
        for role, counts in now.items():
            for name, value in counts.items():
                if name.startswith("kv_bytes_total."):
                    change = value - before[role].get(name, 0.0)
                    found[name.removeprefix("kv_bytes_total.")] = change
        return found

    def all_counts(self) -> dict[str, dict[str, float]]:
        return {role: self.counts(role) for role in ("prefill", "decode")}

    def fallbacks(self, role: str) -> dict[str, float]:
        prefix = "fallback_pages_total."
        return {
            name.removeprefix(prefix): value
            for name, value in self.counts(role).items()
            if name.startswith(prefix) and value
        }


@contextlib.contextmanager
def duo(
    model: Path,
    run_dir: Path,
    *,
    page: int = 16,
    books: Mapping[str, str] = BOOKS,
    env: Mapping[str, str] | None = None,
    prefill: Mapping[str, str] | None = None,
    decode: Mapping[str, str] | None = None,
    engines: str = "keep",
    **changes: Any,
) -> Iterator[Duo]:
    """`env`: of both engines, `prefill` and `decode`: of one; `changes`: of the StackConfig."""
    common = {**books, **(env or {})}
    config = StackConfig(
        model=ModelConfig(path=str(model)),
        cpu=True,
        dtype="float32",
        page_size=page,
        engines=(
            EngineGroup(role="prefill", env=common | dict(prefill or {})),
            EngineGroup(role="decode", env=common | dict(decode or {})),
        ),
        start_router=False,
        start_renderer=False,
        on_child_exit=ExitPolicies(master="keep", store="keep", engines=engines),  # type: ignore[arg-type]
        max_restarts=20,
        run_dir=str(run_dir),
    )
    with Stack(msgspec.structs.replace(config, **changes)).start() as stack:
        yield Duo(stack, page)


def prompt(rng: random.Random, pages: int, rest: int = 5, page: int = 16) -> list[int]:
    """`pages` full pages and `rest` tokens."""
    return [rng.randrange(300, 4000) for _ in range(pages * page + rest)]


def plain(reference: str, tokens: list[int], output: int = 8) -> list[int]:
    """The plain engine's greedy tokens."""
    body = {
        "input_ids": tokens,
        "sampling_params": {"temperature": 0, "max_new_tokens": output, "ignore_eos": True},
    }
    request = urllib.request.Request(f"{reference}/generate", json.dumps(body).encode(), JSON)
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: list[int] = json.loads(reply.read())["output_ids"]
    return found


def _hints(plan: Plan | None) -> dict[str, Any]:
    return {"kv_hints": to_kv_hints(plan)} if plan is not None else {}


def _report(reply: dict[str, Any]) -> dict[str, Any]:
    rows = reply.get("meta_info", {}).get("dualpath") or [{}]
    found: dict[str, Any] = rows[0]
    return found


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def _post(url: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    """The JSON answer, or `{"error": ...}` for a refusal, a broken connection or a time-out."""
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, JSON)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:
        return {"error": f"{error.code}: {error.read().decode()[:300]}"}
    except OSError as error:
        return {"error": str(error) or type(error).__name__}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
