"""What the doctor found: plain values, and how they read as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = "dualpath-doctor/1"

Status = Literal["OK", "BROKEN", "NOT RUN"]

RDMA_NOTE = (
    "RDMA is code and configuration only: it has not been run on hardware; what is checked here "
    "is the protocol that the engines are configured with"
)


@dataclass(frozen=True)
class Answer:
    """Does a component answer? detail: what it says, or why not."""

    name: str
    kind: str
    where: str
    answers: bool
    detail: str = ""


@dataclass(frozen=True)
class Hooks:
    """Of one engine: hooks that are live, and each that should be, with what it is for."""

    engine: str
    live: tuple[str, ...]
    dead: tuple[str, ...]


@dataclass(frozen=True)
class Hop:
    """One way that KV takes. why and fix: empty when it is fine. seconds: 0 when not run."""

    name: str
    status: Status
    why: str = ""
    fix: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """cannot_run: not empty when no hop could be tried at all, and why."""

    components: list[Answer] = field(default_factory=list)
    hooks: list[Hooks] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cannot_run: str = ""

    @property
    def problems(self) -> list[str]:
        """What is broken, a name each."""
        found = [part.name for part in self.components if not part.answers]
        found += [f"hooks of {engine.engine}" for engine in self.hooks if engine.dead]
        return found + [hop.name for hop in self.hops if hop.status == "BROKEN"]

    @property
    def exit_code(self) -> int:
        """0: all is fine. 1: something is broken. 2: it could not be found out."""
        if self.cannot_run:
            return 2
        return 1 if self.problems else 0

    def to_tree(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "problems": self.problems,
            **asdict(self),
        }

    def text(self) -> str:
        parts = [
            ("components", [line for part in self.components for line in _answer(part)]),
            ("hooks", [line for engine in self.hooks for line in _hooks(engine)]),
            ("hops", [line for hop in self.hops for line in _hop(hop)]),
            ("notes", [f"  {note}" for note in self.notes]),
        ]
        lines: list[str] = []
        for title, rows in parts:
            if rows:
                lines += [title, *rows, ""]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if self.cannot_run:
            return f"cannot run: {self.cannot_run}"
        if self.problems:
            return f"broken: {', '.join(self.problems)}"
        ran = sum(1 for hop in self.hops if hop.status == "OK")
        return f"all {ran} hops are fine"


def _answer(part: Answer) -> Iterable[str]:
    word = "answers" if part.answers else "DOES NOT ANSWER"
    yield f"  {part.name:<14} {word:<16} {part.where}".rstrip()
    if part.detail:
        yield f"  {'':<14} {part.detail}"


def _hooks(engine: Hooks) -> Iterable[str]:
    every = len(engine.live) + len(engine.dead)
    yield f"  {engine.engine:<14} {len(engine.live)} of {every} live"
    for hook in engine.live:
        yield f"  {'':<14}   live      {hook}"
    for hook in engine.dead:
        yield f"  {'':<14}   NOT LIVE  {hook}"


def _hop(hop: Hop) -> Iterable[str]:
    took = f"{hop.seconds * 1000:.1f} ms" if hop.status == "OK" else ""
    yield f"  {hop.name:<38} {hop.status:<8} {took}".rstrip()
    if hop.why:
        yield f"  {'':<8} why: {hop.why}"
    if hop.fix:
        yield f"  {'':<8} likely fix: {hop.fix}"
