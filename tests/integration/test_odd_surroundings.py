"""A stack on an IPv6 address, with a model in a folder of an odd name, where the environment names
a proxy that nobody is at. Everything still reaches everything, over both paths."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from stacks import pair_config

from agent_runtime.client import DualPathClient, TurnDone
from agent_runtime.config import RouterConfig
from agent_runtime.stack.stack import Stack

KEY = "sk-integration-0123"
PAGE = 16


def turn(client: DualPathClient, session: str, token_ids: list[int]) -> TurnDone:
    greedy: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    return client.turn(session, token_ids=token_ids, max_new_tokens=8, sampling=greedy)


def test_ipv6_proxies_keys_and_a_folder_with_an_odd_name(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
    folder = tmp_path / "mein Modell: ü,1"
    shutil.copytree(model_dir, folder)
    router = RouterConfig(host="::1", port=0, keys={"ann": KEY}, turn_deadline_s=60.0)
    config = pair_config(folder, tmp_path / "run", host="::1", router=router)
    prompt = [random.Random(7).randrange(300, 4000) for _ in range(40 * PAGE)]
    with Stack(config).start() as stack, DualPathClient(stack.router_url, api_key=KEY) as client:
        assert stack.router_url.startswith("http://[::1]:")
        computed = turn(client, client.create().session_id, prompt)
        assert computed.usage.cached_tokens == 0
        for _ in range(60):
            client.flush()
            loaded = turn(client, client.create().session_id, prompt)
            if loaded.usage.prefill.peer and loaded.usage.prefill.storage:
                break
            time.sleep(0.5)
        assert loaded.token_ids == computed.token_ids
        split, pages = loaded.placement.split, loaded.placement.pages
        assert split is not None
        assert pages is not None
        assert 0 < split < pages
        assert loaded.usage.prefill.peer == split * PAGE
        assert [load["fallback"] for load in loaded.usage.load.values()] == ["", ""]
