"""What is replayed: chosen, scaled sessions and how to describe them in a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.replay.mooncake import MooncakeOptions
from benchmarks.replay.scale import Filters, Sized, scale, select
from benchmarks.replay.schedule import plan
from benchmarks.replay.sources import open_generator, open_trace
from benchmarks.replay.texts import Texts
from benchmarks.replay.trace import Session, Turn
from dualpath_sglang.contract.errors import ConfigError

GENERATED_SESSIONS = 20
TOKENS = ("auto", "text", "counts")


@dataclass(frozen=True)
class WorkloadOptions:
    """Exactly one of `trace` (a file) and `generate` (32k, 48k, 64k). `mooncake`: how to read a
    file of that format, where not by its defaults. `tokens`: replay recorded text, counts only,
    or (auto) text where there is some, a tokenizer for it, and no enlarging scale."""

    trace: Path | None = None
    form: str = "auto"
    generate: str | None = None
    seed: int = 0
    scale: float = 1.0
    filters: Filters = field(default_factory=Filters)
    mooncake: MooncakeOptions | None = None
    tokens: str = "auto"

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ConfigError(f"tokens must be one of {', '.join(TOKENS)}", field="tokens")


@dataclass(frozen=True)
class Workload:
    sessions: tuple[Session, ...]
    options: WorkloadOptions

    @property
    def turns(self) -> int:
        return sum(len(session.turns) for session in self.sessions)

    def describe(self) -> dict[str, Any]:
        """The `workload` block of a result: enough to make the same sessions again."""
        options, filters = self.options, self.options.filters
        turns = [turn for session in self.sessions for turn in session.turns]
        later = [(s, i) for s in self.sessions for i in range(1, len(s.turns))]
        prompt = sum(turn.prompt for turn in turns)
        return {
            "source": options.trace.name if options.trace else f"generator:{options.generate}",
            "dataset": self.sessions[0].dataset,
            "seed": options.seed,
            "scale": options.scale,
            "filters": {
                "sessions": filters.sessions,
                "turns": filters.turns,
                "min_turns": filters.min_turns,
                "max_context": filters.max_context,
            },
            "sessions": len(self.sessions),
            "waiting_sessions": len(self.sessions) - len(plan(self.sessions).roots),
            "turns": len(turns),
            "prompt_tokens": prompt,
            "append_tokens": sum(turn.append for turn in turns),
            "output_tokens": sum(turn.out for turn in turns),
            "longest_context": max(turn.prompt + turn.out for turn in turns),
            "reusable_fraction": round(1 - sum(turn.append for turn in turns) / prompt, 6),
            "rewrites": sum(s.turns[i].keep < s.turns[i - 1].context for s, i in later),
            "gaps_unknown": sum(s.turns[i].gap_s is None for s, i in later),
            "text": _text_lengths(turns),
        }

    @property
    def unused_text(self) -> bool:
        """Whether some turns have text that is not replayed."""
        return any(turn.texts for session in self.sessions for turn in session.turns)


def _text_lengths(turns: Sequence[Turn]) -> dict[str, int] | None:
    """Of the turns that append recorded text; None: none does."""
    texts = [turn.text for turn in turns if turn.text is not None]
    if not texts:
        return None
    return {
        "turns": len(texts),
        "recorded_tokens": sum(text.recorded for text in texts),
        "tokens": sum(text.length for text in texts),
        "replayed_tokens": sum(len(text.ids) for text in texts),
    }


def load(options: WorkloadOptions, texts: Texts | None = None) -> Workload:
    """Reads or generates, scales and filters. Without `texts` (a tokenizer) recorded text is not
    replayed. Raises TraceError or ConfigError."""
    if (options.trace is None) == (options.generate is None):
        raise ConfigError("give exactly one of --trace and --generate", field="trace")
    sized = _sized(options, texts)
    source: Iterator[Session]
    if options.trace is not None:
        source = open_trace(options.trace, options.form, options.mooncake)
        sessions = select(source, options.scale, options.filters, sized)
    else:
        source = open_generator(str(options.generate), options.seed)
        count = options.filters.sessions or GENERATED_SESSIONS
        sessions = islice(select(source, options.scale, options.filters, sized), count)
    return Workload(tuple(sessions), options)


def _sized(options: WorkloadOptions, texts: Texts | None) -> Sized:
    """How sessions get their sizes: from their texts, or from their counts."""
    if options.tokens != "text":
        use = texts is not None and options.tokens == "auto" and options.scale <= 1
        return texts.sized if use and texts is not None else scale
    if texts is None:
        raise ConfigError("text needs a tokenizer: give --model-path", field="tokens")
    if options.scale > 1:
        raise ConfigError("no text is longer than it is: scale must be at most 1", field="scale")
    return partial(texts.sized, required=True)
