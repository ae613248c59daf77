"""What a turn may ask for: ids within the model's vocabulary, tokens within its context."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent_runtime.dispatch.sampling import Checked, checked
from agent_runtime.trajectory.model import TurnRequest
from dualpath_sglang.contract.errors import BadRequest, ConfigError, ContextOverflow


@dataclass(frozen=True)
class ModelFacts:
    """From the model's config.json; null where it does not say or is not on this machine."""

    vocab_size: int | None = None
    context_length: int | None = None


def model_facts(model_path: str) -> ModelFacts:
    """Raises ConfigError for a local folder without a readable config.json."""
    folder = Path(model_path)
    if not model_path or not folder.is_dir():
        return ModelFacts()
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read {file}: {error}", field="model_path") from error
    return ModelFacts(
        _count(config.get("vocab_size")), _count(config.get("max_position_embeddings"))
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


@dataclass(frozen=True)
class Limits:
    """`context_length()` may become known only when the first engine is up."""

    vocab_size: int | None
    context_length: Callable[[], int | None]
    default_max_new_tokens: int

    def sampling(self, request: TurnRequest) -> Checked:
        """What the turn asks of sampling, checked. Raises BadRequest naming the field."""
        given = request.sampling
        if request.max_new_tokens is not None:
            given = {**given, "max_new_tokens": request.max_new_tokens}
        return checked(given, self.vocab_size, prefix=request.sampling_prefix)

    def max_new_tokens(self, prompt: array[int], appended: array[int], asked: int | None) -> int:
        """The output limit of a turn that asks for `asked`. Raises BadRequest, ContextOverflow."""
        if not prompt:
            raise BadRequest(
                "the history is empty and so is what the turn appends: append at least one token"
            )
        self._check_vocabulary(appended)
        context = self.context_length()
        if context is None:
            return asked or self.default_max_new_tokens
        room = context - len(prompt)
        wanted = asked or max(1, min(self.default_max_new_tokens, room))
        if wanted > room:
            history = len(prompt) - len(appended)
            raise ContextOverflow(
                f"{history} tokens of history + {len(appended)} appended + {wanted} "
                f"max_new_tokens = {len(prompt) + wanted} tokens, the context holds {context}: "
                "append less, lower max_new_tokens, or cut the history with keep"
            )
        return wanted

    def _check_vocabulary(self, appended: array[int]) -> None:
        if self.vocab_size is None or not appended or max(appended) < self.vocab_size:
            return
        index = next(i for i, token in enumerate(appended) if token >= self.vocab_size)
        raise BadRequest(
            f"token_ids[{index}] is {appended[index]}, the vocabulary has {self.vocab_size} "
            f"tokens: use ids from 0 to {self.vocab_size - 1}",
            field=f"token_ids[{index}]",
        )
