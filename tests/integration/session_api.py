"""The session API as a test uses it: one short function per call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

GREEDY = {"temperature": 0.0, "ignore_eos": True}


class Session:
    """One session of the router at `url`."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120.0)
        reply = self._http.post("/v1/sessions", json={})
        reply.raise_for_status()
        self.id: str = reply.json()["session_id"]

    def turn(self, tokens: int = 8, **body: Any) -> httpx.Response:
        return self._http.post(f"/v1/sessions/{self.id}/turns", json=self._body(tokens, body))

    def events(self, tokens: int = 8, **body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, data) of each server-sent event, as they arrive; closing it disconnects."""
        full = self._body(tokens, {"stream": True, **body})
        with self._http.stream("POST", f"/v1/sessions/{self.id}/turns", json=full) as reply:
            assert reply.status_code == 200, reply.read()
            name = ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def history(self) -> list[int]:
        reply = self._http.get(f"/v1/sessions/{self.id}", params={"include": "token_ids"})
        reply.raise_for_status()
        token_ids: list[int] = reply.json()["token_ids"]
        return token_ids

    @staticmethod
    def _body(tokens: int, body: dict[str, Any]) -> dict[str, Any]:
        sampling = GREEDY | {"min_new_tokens": tokens}
        return {"max_new_tokens": tokens, "sampling": sampling, **body}


def plain(url: str, prompt: list[int], tokens: int) -> list[int]:
    """What one ordinary engine generates for the whole prompt."""
    sampling = GREEDY | {"max_new_tokens": tokens, "min_new_tokens": tokens}
    body = {"input_ids": prompt, "sampling_params": sampling}
    reply = httpx.post(f"{url}/generate", json=body, timeout=120.0)
    reply.raise_for_status()
    output: list[int] = reply.json()["output_ids"]
    return output


def served_exactly(session: Session, reference: str, new: list[int]) -> None:
    """The next turn works and is what a plain engine gives for the session's history."""
    before = session.history()
    done = session.turn(token_ids=new)
    assert done.status_code == 200, done.text
    assert done.json()["token_ids"] == plain(reference, before + new, 8)
