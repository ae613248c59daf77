"""Are the outputs those of one plain engine? Token for token, every turn, nothing forgiven.

The prompts are the exact token ids of the run (rebuilt from `tokens.jsonl`, each proven by its
digest), sent to SGLang's own `/generate` with the same sampling. A turn that the run did not
finish, or that the reference engine fails to answer, counts as not compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from benchmarks.replay.progress import Progress
from benchmarks.replay.records import TurnTokens
from benchmarks.replay.router import CallFailed
from benchmarks.replay.turns import greedy, prompt_digest
from dualpath_sglang.contract.errors import ConfigError


def prompts(tokens: Sequence[TurnTokens]) -> list[list[int]]:
    """The full prompt of each turn, in order. Raises ConfigError if a digest does not match."""
    histories: dict[str, list[int]] = {}
    made = []
    for turn in tokens:
        prompt = histories.get(turn.session, [])[: turn.keep] + turn.append
        if len(prompt) != turn.prompt_tokens or prompt_digest(prompt) != turn.prompt_sha256:
            raise ConfigError(
                f"session {turn.session} turn {turn.turn}: the recorded ids do not make the "
                "prompt that was sent (digest differs); the tokens file is damaged",
                field="run",
            )
        histories[turn.session] = prompt + turn.output
        made.append(prompt)
    return made


async def compare(
    tokens: Sequence[TurnTokens],
    planned_turns: int,
    reference_url: str,
    progress: Progress,
    concurrency: int = 4,
    timeout_s: float = 600.0,
) -> dict[str, Any]:
    """The `comparison` block of a result."""
    if concurrency < 1:
        raise ConfigError("concurrency must be at least 1", field="concurrency")
    slots = asyncio.Semaphore(concurrency)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as http:

        async def one(turn: TurnTokens, prompt: list[int]) -> list[int] | CallFailed:
            async with slots:
                answer = await _reference(http, reference_url, prompt, len(turn.output))
            progress.turn_ended(None if isinstance(answer, CallFailed) else 0.0)
            return answer

        pairs = zip(tokens, prompts(tokens), strict=True)
        answers = await asyncio.gather(*(one(turn, prompt) for turn, prompt in pairs))
    return verdict(tokens, answers, planned_turns, reference_url)


def verdict(
    tokens: Sequence[TurnTokens],
    answers: Sequence[list[int] | CallFailed],
    planned_turns: int,
    reference_url: str,
) -> dict[str, Any]:
    """Counts, the first difference, and whether everything planned was compared and equal."""
    compared = differing = 0
    first: dict[str, Any] | None = None
    errors = []
    for turn, answer in zip(tokens, answers, strict=True):
        if isinstance(answer, CallFailed):
            errors.append({"session": turn.session, "turn": turn.turn, "message": str(answer)})
            continue
        compared += 1
        if answer != turn.output:
            differing += 1
            first = first or _difference(turn, answer)
    return {
        "reference_url": reference_url,
        "compared_turns": compared,
        "differing_turns": differing,
        "not_compared_turns": planned_turns - compared,
        "outputs_equal": compared == planned_turns and differing == 0 and compared > 0,
        "first_difference": first,
        "errors": errors,
    }


def _difference(turn: TurnTokens, answer: list[int]) -> dict[str, Any]:
    """Where the outputs part. A side that ended there has None."""
    shorter = min(len(answer), len(turn.output))
    position = next((i for i in range(shorter) if answer[i] != turn.output[i]), shorter)
    return {
        "session": turn.session,
        "turn": turn.turn,
        "position": position,
        "prompt_tokens": turn.prompt_tokens,
        "run": turn.output[position] if position < len(turn.output) else None,
        "reference": answer[position] if position < len(answer) else None,
    }


@contextlib.asynccontextmanager
async def _mapped(
    call: AbstractAsyncContextManager[aiohttp.ClientResponse],
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An HTTP call to an engine whose failures, also while its answer is read, are CallFailed."""
    try:
        async with call as reply:
            if reply.status >= 400:
                raise _refused(reply.status, await reply.text())
            yield reply
    except TimeoutError as error:
        raise CallFailed("timeout", "no answer within the replay's timeout") from error
    except (aiohttp.ClientError, OSError) as error:
        raise CallFailed("connection", f"{type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CallFailed("bad_reply", f"{type(error).__name__}: {error}") from error


def _refused(status: int, text: str) -> CallFailed:
    try:
        error = json.loads(text)["error"]
        return CallFailed(str(error["type"]), str(error["message"]), status)
    except (ValueError, KeyError, TypeError):
        return CallFailed("http_error", f"HTTP {status}: {text[:500]}", status)


async def _reference(
    http: aiohttp.ClientSession, url: str, prompt: list[int], out: int
) -> list[int] | CallFailed:
    body = {"input_ids": prompt, "stream": False, "sampling_params": greedy(out)}
    try:
        async with _mapped(http.post(url.rstrip("/") + "/generate", json=body)) as reply:
            output: list[int] = (await reply.json())["output_ids"]
            return output
    except CallFailed as error:
        return error


def apply(result: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """The result with the comparison in it."""
    return {
        **result,
        "comparison": comparison,
        "compared_turns": comparison["compared_turns"],
        "outputs_equal": comparison["outputs_equal"],
    }
