"""Proxies that the environment names: never for this machine, named in the error for others."""

from __future__ import annotations

import asyncio

import pytest
from router_world import world

from agent_runtime.client import AsyncDualPathClient, DualPathClient
from agent_runtime.proxies import is_local, proxy_of
from dualpath_sglang.contract.errors import RouterFailure

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
DEAD = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTP_PROXY", f"http://{DEAD}"), ("ALL_PROXY", f"socks5://{DEAD}"), ("http_proxy", DEAD)],
)
async def test_a_router_on_this_machine_is_asked_directly(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    def plainly(url: str) -> bool:
        with DualPathClient(url) as client:
            return client.ready()

    async with world() as w, AsyncDualPathClient(w.url) as client:
        assert await client.ready()
        assert await asyncio.to_thread(plainly, w.url)


async def test_an_error_names_the_proxy_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{DEAD}")
    asked = f"through the proxy http://{DEAD}"
    async with AsyncDualPathClient("http://router.invalid:1") as client:
        with pytest.raises(RouterFailure, match=asked) as caught:
            await client.ready()
    assert "secret" not in caught.value.message
    with (
        DualPathClient("http://router.invalid:1") as plain,
        pytest.raises(RouterFailure, match=asked),
    ):
        plain.ready()


def test_a_kind_of_proxy_that_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5://{DEAD}")
    with pytest.raises(RouterFailure, match=f"socksio.*through the proxy socks5://{DEAD}"):
        DualPathClient("http://router.invalid:1")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.9.9.9:1", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("http://a.localhost:1", True),
        ("http://10.0.0.1:1", False),
        ("http://router", False),
        ("nonsense", False),
    ],
)
def test_what_is_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_proxies_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("http://router") is None
    monkeypatch.setenv("ALL_PROXY", "proxy:3128")
    assert proxy_of("https://router") == "http://proxy:3128"
    monkeypatch.setenv("NO_PROXY", "router")
    assert proxy_of("https://router") is None
