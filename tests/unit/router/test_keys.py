"""From a key to its owner, and what owners can see of each other: nothing."""

from __future__ import annotations

import hmac
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_world import World, failure, served, world

from agent_runtime import owners
from agent_runtime.client import AsyncDualPathClient, DualPathClient
from agent_runtime.config import ModelConfig, RouterConfig, StackConfig
from agent_runtime.owners import ANONYMOUS, Keys, is_exposed
from agent_runtime.serve import main as serve
from agent_runtime.settings import load
from agent_runtime.stack.validate import validate
from dualpath_sglang.contract.errors import ConfigError, Forbidden, NotFound, Unauthorized

ANN, BOB, ADMIN = "sk-ann-0123456789", "sk-bob-0123456789", "sk-admin-0123456789"
KEYS = {"ann": ANN, "bob": BOB}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- the pure part --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ANN}"},
        {"authorization": f"bearer  {ANN} "},
        {"x-api-key": ANN},
        {"x-api-key": ANN, "authorization": f"Bearer {ANN}"},
        {"x-api-key": ANN, "authorization": "Bearer something-else"},
        {"x-api-key": ANN, "authorization": "Basic abc"},
    ],
)
def test_a_key_has_its_owner(headers: dict[str, str]) -> None:
    assert Keys(KEYS, ADMIN).owner(headers) == "ann"


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "has no key"),
        ({"authorization": ANN}, "has no key"),
        ({"authorization": "Bearer "}, "has no key"),
        ({"x-api-key": ANN[:-1]}, "a key that nobody has"),
        ({"x-api-key": ADMIN}, "a key that nobody has"),
        ({"x-api-key": ANN, "authorization": f"Bearer {BOB}"}, "two keys of different owners"),
    ],
)
def test_no_owner(headers: dict[str, str], says: str) -> None:
    with pytest.raises(Unauthorized, match=says) as caught:
        Keys(KEYS, ADMIN).owner(headers)
    assert not any(key in caught.value.message for key in (ANN, BOB, ADMIN))


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key", "cookie"]), st.text()))
def test_without_keys_everybody_is_nobody_in_particular(headers: dict[str, str]) -> None:
    assert Keys({}).owner(headers) == ANONYMOUS
    Keys({}).check_admin(headers)


@given(st.text())
def test_only_the_whole_key_opens(key: str) -> None:
    for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
        with pytest.raises(Unauthorized):
            Keys(KEYS).owner(headers)


def test_the_admin_key() -> None:
    keys = Keys(KEYS, ADMIN)
    keys.check_admin({"x-api-key": ADMIN})
    with pytest.raises(Forbidden):
        keys.check_admin({"x-api-key": ANN})
    with pytest.raises(Unauthorized):
        keys.check_admin({})
    Keys(KEYS).check_admin({"x-api-key": BOB})
    with pytest.raises(Unauthorized):
        Keys(KEYS).check_admin({})
    with pytest.raises(Unauthorized):
        Keys({}, ADMIN).check_admin({})


@pytest.mark.parametrize("key", [ANN, BOB, "neither-of-the-two"])
def test_every_key_is_compared_whichever_is_right(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return compare(a, b)

    monkeypatch.setattr(owners.hmac, "compare_digest", watched)
    try:
        Keys(KEYS).owner({"x-api-key": key})
    except Unauthorized:
        assert key not in KEYS.values()
    assert len(compared) == len(set(compared)) == 2


@pytest.mark.parametrize(("keys", "admin"), [({"a": ANN, "b": ANN}, ""), ({"a": ANN}, ANN)])
def test_one_key_has_one_meaning(keys: dict[str, str], admin: str) -> None:
    with pytest.raises(ConfigError, match="two owners have the same key") as caught:
        Keys(keys, admin)
    assert ANN not in caught.value.message


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{ann: short-secret}", "router.keys.ann in environment variable DUALPATH_ROUTER_KEYS"),
        ("{ann: 1234567890123456789}", "expected secret of 16 to 512 visible characters"),
        ("{'a b': sk-ann-0123456789}", "to secret of 16 to 512 visible characters"),
        ("sk-ann-0123456789", "router.keys in environment variable DUALPATH_ROUTER_KEYS"),
        ("[sk-ann-0123456789]", "which is not shown here"),
    ],
)
def test_a_mistake_about_keys_shows_none(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(StackConfig, env={"DUALPATH_ROUTER_KEYS": text})
    assert says in caught.value.message
    for secret in ("short-secret", "1234567890123456789", ANN):
        assert secret not in caught.value.message
        assert secret not in repr(caught.value.field)


def test_keys_from_the_environment() -> None:
    env = {"DUALPATH_ROUTER_KEYS": f"{{ann: {ANN}}}", "DUALPATH_ROUTER_ADMIN_KEY": ADMIN}
    env["DUALPATH_API_KEY"] = BOB
    router = load(StackConfig, env=env).router
    assert (router.keys, router.admin_key) == ({"ann": ANN}, ADMIN)


@pytest.mark.parametrize(
    ("host", "keys", "insecure", "exposed"),
    [
        ("127.0.0.1", {}, False, False),
        ("::1", {}, False, False),
        ("localhost", {}, False, False),
        ("0.0.0.0", {}, False, True),
        ("::", {}, False, True),
        ("10.0.0.1", {}, False, True),
        ("router.example", {}, False, True),
        ("0.0.0.0", KEYS, False, False),
        ("0.0.0.0", {}, True, False),
    ],
)
def test_without_keys_for_this_machine_only(
    host: str, keys: dict[str, str], insecure: bool, exposed: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert is_exposed(host, keys, insecure) is exposed
    router = RouterConfig(host=host, keys=keys)
    config = StackConfig(model=ModelConfig(path="m"), router=router, insecure=insecure)
    if not exposed:
        validate(config)
        return
    with pytest.raises(ConfigError, match=r"set router\.keys, or --insecure") as caught:
        validate(config)
    assert caught.value.field == "router.host"
    file = tmp_path / "router.yaml"
    file.write_text(f"host: '{host}'\n")
    assert serve(["--config", str(file)]) == 1
    assert f"host is {host}: other machines reach it" in capsys.readouterr().err


# --- over HTTP ------------------------------------------------------------------------------------


def client(w: World, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=w.url, headers=bearer(key), trust_env=False)


async def test_every_route_but_the_probes_wants_a_key() -> None:
    config: dict[str, Any] = {"keys": KEYS, "admin_key": ADMIN, "protect_metrics": True}
    async with world(**config) as w:
        paths = (await w.http.get("/openapi.json")).json()["paths"]
        routes = [(method, path) for path, methods in paths.items() for method in methods]
        assert len(routes) >= 9
        for method, path in routes:
            reply = await w.http.request(method, path)
            if path in ("/health", "/ready"):
                assert reply.status_code == 200
                continue
            assert (reply.status_code, failure(reply)["type"]) == (401, "unauthorized")
            assert reply.headers["www-authenticate"] == "Bearer"


async def test_owners_do_not_see_each_other() -> None:
    async with world(keys=KEYS) as w, client(w, ANN) as ann, client(w, BOB) as bob:
        made = await ann.post("/v1/sessions", json={"session_id": "s"})
        assert made.status_code == 201
        body = {"token_ids": [1, 2], "max_new_tokens": 2}
        assert (await ann.post("/v1/sessions/s/turns", json=body)).status_code == 200
        for method, path in (
            ("GET", "/v1/sessions/s"),
            ("GET", "/v1/sessions/s?include=token_ids"),
            ("DELETE", "/v1/sessions/s"),
            ("POST", "/v1/sessions/s/turns"),
        ):
            theirs = await bob.request(method, path, json=body)
            nobodys = await bob.request(method, path.replace("s/s", "s/x"), json=body)
            assert theirs.status_code == nobodys.status_code == 404
            words = [failure(reply)["message"] for reply in (theirs, nobodys)]
            assert words[0] == words[1].replace("'x'", "'s'")
        # Not even that the id is taken.
        assert (await bob.post("/v1/sessions", json={"session_id": "s"})).status_code == 201
        assert (await bob.get("/v1/sessions/s")).json()["turns"] == 0
        assert (await ann.get("/v1/sessions/s")).json()["turns"] == 1
        assert (await ann.post("/v1/sessions", json={"session_id": "s"})).status_code == 409
        assert (await bob.delete("/v1/sessions/s")).status_code == 204
        assert (await ann.get("/v1/sessions/s")).json()["turns"] == 1


async def test_the_admin_key_opens_admin_and_no_sessions() -> None:
    async with (
        world(keys=KEYS, admin_key=ADMIN) as w,
        client(w, ADMIN) as admin,
        client(w, ANN) as ann,
    ):
        assert (await admin.get("/admin/engines")).status_code == 200
        assert (await admin.post("/v1/sessions", json={})).status_code == 401
        refused = await ann.get("/admin/engines")
        assert (refused.status_code, failure(refused)["type"]) == (403, "forbidden")
        assert (await w.http.get("/metrics")).status_code == 200


async def test_the_clients_send_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(keys=KEYS) as w:
        async with AsyncDualPathClient(w.url, api_key=ANN) as ann:
            await ann.create("s")
        monkeypatch.setenv("DUALPATH_API_KEY", BOB)
        async with AsyncDualPathClient(w.url) as bob:
            with pytest.raises(NotFound):
                await bob.session("s")
        monkeypatch.delenv("DUALPATH_API_KEY")
        async with AsyncDualPathClient(w.url) as nobody:
            with pytest.raises(Unauthorized, match="has no key"):
                await nobody.create()
    with DualPathClient("http://127.0.0.1:1", api_key=ANN) as plain:
        assert plain._key == ANN


async def test_owners_survive_a_restart(tmp_path: Path) -> None:
    config: dict[str, Any] = {"keys": KEYS, "database": str(tmp_path / "db")}
    async with world(**config) as w, client(w, ANN) as ann:
        await ann.post("/v1/sessions", json={"session_id": "s", "metadata": {"a": 1}})
    async with (
        served(RouterConfig(engines=w.router.config.engines, **config)) as again,
        client(again, ANN) as ann,
        client(again, BOB) as bob,
    ):
        assert (await ann.get("/v1/sessions/s")).json()["metadata"] == {"a": 1}
        assert (await bob.get("/v1/sessions/s")).status_code == 404


FIRST_SCHEMA = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, created_at REAL NOT NULL, metadata BLOB NOT NULL);
CREATE TABLE turns (
  session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  turn INTEGER NOT NULL, kept INTEGER NOT NULL,
  input BLOB NOT NULL, output BLOB NOT NULL, record BLOB NOT NULL,
  idempotency_key TEXT, digest TEXT NOT NULL,
  PRIMARY KEY (session_id, turn)
);
CREATE UNIQUE INDEX turns_by_key ON turns (session_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
"""


async def test_sessions_from_before_owners_are_kept(tmp_path: Path) -> None:
    """A database of schema 1, with a turn taken from one of today."""
    today, before = tmp_path / "today", tmp_path / "before"
    async with world(database=str(today)) as w:
        sid = await w.session(session_id="s")
        done = await w.done(sid, token_ids=[1, 2, 3], max_new_tokens=2)
    new, old = sqlite3.connect(today), sqlite3.connect(before)
    old.executescript(FIRST_SCHEMA + "PRAGMA user_version = 1;")
    session = new.execute("SELECT id, created_at, metadata FROM sessions").fetchone()
    old.execute("INSERT INTO sessions VALUES (?, ?, ?)", session)
    columns = "session_id, turn, kept, input, output, record, idempotency_key, digest"
    turn = new.execute(f"SELECT {columns} FROM turns").fetchone()
    old.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?)", turn)
    old.commit()
    for db in (new, old):
        db.close()
    engines = w.router.config.engines
    for _ in range(2):
        async with served(RouterConfig(engines=engines, database=str(before))) as again:
            assert await again.history("s") == [1, 2, 3, *done["token_ids"]]
    async with served(RouterConfig(engines=engines, database=str(before))) as again:
        assert (await again.http.delete("/v1/sessions/s")).status_code == 204
    with sqlite3.connect(before) as db:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        assert {"sessions", "turns"} <= tables
        assert not {"sessions_1", "turns_1"} & tables
        assert db.execute("SELECT count(*) FROM turns").fetchone() == (0,)
    db.close()
