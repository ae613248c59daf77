"""What a recorded or generated session is, whatever file it came from.

Every format module (`traj1`, `mooncake`, `generator`) makes these values and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

from dualpath_sglang.contract.errors import ConfigError

MAX_TOKENS = 2**24
"""Prompt and output of one turn. More than any model's context: what exceeds it is damage, and
has to be found before anything is made that large."""
MAX_SECONDS = 1e11
"""Room for times since 1970 in any unit down to milliseconds."""


class TraceError(ConfigError):
    """A trace file is not what its format says. The message starts with `file:line: field:`."""

    kind = "trace_error"


@dataclass(frozen=True)
class TextTokens:
    """A recorded text as tokens of the model that is served: `ids` of its head, `length` of all
    of it, and `recorded`, the trace's own count."""

    ids: Sequence[int]
    length: int
    recorded: int


@dataclass(frozen=True)
class Turn:
    """One model call. All sizes in tokens.

    The prompt is the first `keep` tokens of the context plus `append` new ones; `out` tokens are
    generated, of which the client keeps the first `out_kept`. No engine generates nothing: where
    `out` is 0 one token is generated, and neither kept nor counted.
    `gap_s` is the recorded pause before the turn, `t_s` its start after that of the session and
    `llm_s` how long it took (None: not recorded).
    `hash_keep` and `hash_add` name content in blocks: the first `hash_keep` ids of the turn
    before, then runs of (first id, count); `hash_add` is None where there are no ids. The append
    starts `hash_at` recorded tokens after the start of the first id.
    `texts` are those that the turn appends, as recorded, one per message; `text` is what was made
    of them, where texts are replayed.
    """

    keep: int
    append: int
    out: int
    out_kept: int
    gap_s: float | None = None
    hash_keep: int = 0
    hash_add: tuple[tuple[int, int], ...] | None = None
    hash_at: int = 0
    t_s: float | None = None
    llm_s: float | None = None
    texts: tuple[str, ...] | None = None
    text: TextTokens | None = None

    @property
    def prompt(self) -> int:
        return self.keep + self.append

    @property
    def context(self) -> int:
        """Tokens of context that the client still has after the turn."""
        return self.prompt + self.out_kept

    @property
    def generated(self) -> int:
        """Tokens that the engine is asked for."""
        return max(1, self.out)


@dataclass(frozen=True)
class SharedPrefix:
    """What a first prompt has in common with those of other users: definitions of tools, then
    the system prompt, in recorded tokens. Equal sizes in one data set are equal content.

    `ids` are the blocks that lie in it; without ids it is the start of the first prompt.
    """

    tools: int
    system: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Session:
    """An append chain: turns one after the other, with sizes `factor` times those recorded.

    `block` is in recorded tokens. Sessions with one `parent` are those of one user and their
    sub-agents; `start_s` counts from the parent's start, without a parent from the trace's
    (None: not recorded). `where` is the place in a file, for error messages.
    """

    dataset: str
    sid: str
    turns: tuple[Turn, ...]
    block: int | None = None
    hash_scope: str | None = None
    factor: float = 1.0
    shared: SharedPrefix | None = None
    parent: str | None = None
    start_s: float | None = None
    where: str = field(default="", compare=False, repr=False)


class Fields:
    """Reads the fields of one JSON object strictly; every failure says file, line and field."""

    def __init__(self, obj: Any, where: str, prefix: str = "") -> None:
        self.where = where
        self.prefix = prefix
        if not isinstance(obj, dict):
            raise TraceError(f"{where}: {prefix or 'row'}: must be a JSON object", field=prefix)
        self.obj: dict[str, Any] = obj

    def fail(self, name: str, problem: str) -> TraceError:
        field = f"{self.prefix}.{name}" if self.prefix else name
        return TraceError(f"{self.where}: {field}: {problem}", field=field)

    def get(self, name: str) -> Any:
        if name not in self.obj:
            raise self.fail(name, "is missing")
        return self.obj[name]

    def integer(self, name: str, minimum: int = 0, maximum: int = MAX_TOKENS) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(name, f"must be an integer of at least {minimum}, not {short(value)}")
        if value > maximum:
            raise self.fail(name, f"must be at most {maximum:,}, not {short(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.obj.get(name) is None else self.text(name)

    def text(self, name: str) -> str:
        value = self.string(name)
        if not value:
            raise self.fail(name, "must not be empty")
        return value

    def string(self, name: str) -> str:
        """Also an empty one. JSON can hold halves of surrogate pairs, which nothing can send."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.fail(name, f"must be a string, not {short(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.fail(name, "holds half a surrogate pair, which is no character") from None
        return value

    def seconds(self, name: str, optional: bool = False) -> float | None:
        value = self.obj.get(name) if optional else self.get(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MAX_SECONDS:
            raise self.fail(
                name, f"must be null or seconds of 0 to {MAX_SECONDS:.0e}, not {short(value)}"
            )
        return float(value)

    def rows(self, name: str, minimum: int = 0) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list) or len(value) < minimum:
            raise self.fail(name, f"must be a list of at least {minimum} entries")
        return value

    def block_id(self, name: str, value: Any) -> int:
        """An id of a block of tokens, as traces have them: 64 bits, with or without a sign."""
        if type(value) is not int or not -(2**63) <= value < 2**64:
            raise self.fail(name, f"must hold block ids (64-bit integers), not {short(value)}")
        return value
