"""`dualpath doctor` as a command: where it looks, what it prints, its exit code."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from doctor_world import StubEngine, StubObject, served

from agent_runtime.cli import main
from agent_runtime.doctor import answers
from agent_runtime.doctor.fixes import _ANY, _WAYS, likely_fix
from agent_runtime.doctor.places import Part, from_router, from_run_dir
from agent_runtime.doctor.report import Answer, Hooks, Hop, Report
from agent_runtime.stack.status import SCHEMA
from dualpath_sglang.contract.errors import ConfigError, StartupError


def status(folder: Path, *components: dict[str, Any], **changes: Any) -> Path:
    tree = {"schema": SCHEMA, "state": "ready", "components": list(components), **changes}
    (folder / "status.json").write_text(json.dumps(tree))
    return folder


def component(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    usual = {
        "name": name,
        "kind": kind,
        "role": "",
        "state": "ready",
        "external": False,
        "pid": os.getpid(),
        "url": "",
        "ports": {},
    }
    return usual | changes


def test_places_of_a_run_folder(tmp_path: Path) -> None:
    master = component("master", "master", url="10.0.0.1:5", ports={"rpc": 5, "metrics": 6})
    engine = component("far", "engine", url="http://h:1/", role="decode", external=True, pid=None)
    places = from_run_dir(status(tmp_path, master, component("store", "store"), engine))
    assert places.store_admin_url == "http://10.0.0.1:6"
    assert places.engines == (Part("far", "engine", "decode", "http://h:1", "", 0),)
    assert [part.kind for part in places.parts] == ["master", "store", "engine"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no"),
        ("{", "cannot be read"),
        ("[]", "no status of a stack"),
        ('{"schema": "other/1"}', "no status of a stack"),
    ],
)
def test_a_folder_without_a_stack(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        from_run_dir(tmp_path)


def test_a_stopped_stack_cannot_be_examined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(status(tmp_path, state="stopped"))
    assert main(["doctor", "--run-dir", folder]) == 2
    assert "was stopped" in capsys.readouterr().err
    assert main(["doctor", "--json", "--run-dir", folder]) == 2
    tree = json.loads(capsys.readouterr().out)
    assert (tree["exit_code"], tree["schema"]) == (2, "dualpath-doctor/1")
    assert "was stopped" in tree["cannot_run"]


def test_a_router_that_is_none(router: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--router", "http://127.0.0.1:9"]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert main(["doctor", "--router", router + "/other"]) == 2
    assert "is no router" in capsys.readouterr().err


def test_a_router_without_engines(router: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--router", router]) == 2
    assert "cannot run: the stack has no engines" in capsys.readouterr().out


def test_flags_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--router", "http://h", "--run-dir", "x"]) == 2
    assert "--run-dir: not allowed with argument --router" in capsys.readouterr().err
    assert main(["doctor", "--jsn"]) == 2
    assert "did you mean --json?" in capsys.readouterr().err


def test_a_stack_from_its_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it in the command's own event loop but for the engines, which are gone."""
    gone = component("prefill-0", "engine", role="prefill", url="http://127.0.0.1:9")
    dead = component("renderer", "renderer", state="failed")
    folder = status(tmp_path, component("store", "store"), gone, dead)
    assert main(["doctor", "--run-dir", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"ready, process {os.getpid()}" in out
    assert "broken: renderer, prefill-0" in out
    assert "it is failed; its log says why" in out


async def test_the_router_names_the_engines() -> None:
    engine = {"name": "p", "role": "prefill", "url": "http://h:1/", "healthy": True}
    async with router_of([engine]) as url, aiohttp.ClientSession() as http:
        places = await from_router(http, url)
    assert [part.name for part in places.parts] == ["router", "p"]
    assert places.engines[0].url == "http://h:1"
    async with served(StubEngine("p", "prefill").app()) as urls, aiohttp.ClientSession() as http:
        with pytest.raises(StartupError, match="no router"):
            await from_router(http, urls[0])


async def test_who_answers() -> None:
    async with router_of([], missing=["decode"]) as url, aiohttp.ClientSession() as http:
        router = await answers.ask(http, Part("router", "router", url=url))
        port = url.removeprefix("http://")
        master = await answers.ask(http, Part("master", "master", url=port))
        gone = await answers.ask(http, Part("master", "master", url="127.0.0.1:9"))
        store = await answers.ask(http, Part("store", "store", state="ready", pid=2**22 + 1))
    assert "no healthy engine of role decode" in router.detail
    assert (router.answers, master.answers, gone.answers, store.answers) == (
        False,
        True,
        False,
        False,
    )
    assert "is gone" in store.detail


def router_of(engines: list[dict[str, Any]], missing: list[str] | None = None) -> Any:
    """A stub router's URL."""
    from contextlib import asynccontextmanager

    from aiohttp import web

    async def admin(request: web.Request) -> web.Response:
        return web.json_response({"engines": engines})

    async def ready(request: web.Request) -> web.Response:
        return web.json_response({"missing": missing or []})

    @asynccontextmanager
    async def run() -> Any:
        app = web.Application()
        app.router.add_get("/admin/engines", admin)
        app.router.add_get("/ready", ready)
        async with served(app) as urls:
            yield urls[0]

    return run()


@pytest.fixture
def router() -> Iterator[str]:
    """A stub router without engines, in a thread: the command has an event loop of its own."""

    class Stub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/admin/engines": b'{"engines": []}', "/ready": b'{"missing": []}'}
            data = body.get(self.path, b"[]")
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# --- the report -----------------------------------------------------------------------------------


def test_exit_codes() -> None:
    assert Report().exit_code == 0
    assert Report(hops=[Hop("a", "OK"), Hop("b", "NOT RUN")]).exit_code == 0
    assert Report(hops=[Hop("a", "BROKEN")]).exit_code == 1
    assert Report(components=[Answer("a", "store", "", False)]).exit_code == 1
    assert Report(hooks=[Hooks("a", (), ("dead",))]).exit_code == 1
    assert Report(hops=[Hop("a", "BROKEN")], cannot_run="why").exit_code == 2


def test_the_table() -> None:
    report = Report(
        [Answer("router", "router", "http://h:1", True)],
        [Hooks("prefill-0", ("x (after): y",), ())],
        [Hop("store -> p", "OK", seconds=0.0123), Hop("d -> p", "BROKEN", "w", "f", 1.0)],
        ["a note"],
    )
    text = report.text()
    for line in (
        "  router         answers          http://h:1",
        "  prefill-0      1 of 1 live",
        "  store -> p                             OK       12.3 ms",
        "  d -> p                                 BROKEN",
        "           why: w",
        "           likely fix: f",
        "broken: d -> p",
    ):
        assert line in text.splitlines(), text
    assert json.loads(json.dumps(report.to_tree()))["problems"] == ["d -> p"]


def test_every_step_has_a_fix_of_its_own() -> None:
    every = [_ANY, *_WAYS.values()]
    assert len({fix for fixes in every for fix in fixes.values()}) == sum(map(len, every))
    assert "log" in likely_fix("peer", "nobody knows")


def test_the_stub_object_is_like_the_real_one() -> None:
    from agent_runtime.doctor.store_object import ProbeObject

    wanted = {name for name in vars(StubObject) if not name.startswith("_")}
    assert wanted <= set(dir(ProbeObject))
