"""Is a reply what was asked for? A replay that did something else must not look like a success."""

from __future__ import annotations

from typing import Any

from benchmarks.replay.router import CallFailed, Streamed


def check_reply(streamed: Streamed, turn: int, prompt_tokens: int, out: int) -> None:
    """Raises CallFailed(`protocol`) at the first difference."""
    done = streamed.done
    expected: list[tuple[str, Any, Any]] = [
        ("turn", done.turn, turn),
        ("prompt_tokens", done.prompt_tokens, prompt_tokens),
        ("history_tokens", done.history_tokens, prompt_tokens + out),
        ("finish_reason", done.finish_reason, "length"),
        ("number of token_ids", len(done.token_ids), out),
    ]
    for name, got, wanted in expected:
        if got != wanted:
            raise CallFailed("protocol", f"`turn.done` has {name} {got!r}, expected {wanted!r}")
    if streamed.token_ids != done.token_ids:
        raise CallFailed("protocol", "streamed tokens differ from those in `turn.done`")


def check_history(router: list[int], client: list[int]) -> None:
    """Raises CallFailed(`history`) unless both are the same."""
    if router == client:
        return
    pairs = enumerate(zip(router, client, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(router), len(client)))
    raise CallFailed(
        "history",
        f"the router's history ({len(router)} tokens) and the client's ({len(client)}) "
        f"differ from position {first}",
    )
