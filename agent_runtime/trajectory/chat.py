"""The conversation of a session as the renderer needs it: exact text and messages.

A chain of nodes, one per messages turn. A node never changes the nodes before it, so going back to
an earlier turn (`keep`) is taking an earlier node. Only the decoded output is filled in later.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from agent_runtime.trajectory.model import ChatPart
from dualpath_sglang.contract.render import Message


@dataclass(eq=False)
class ChatNode:
    """`start`: index of the first history token that belongs to this conversation."""

    parent: ChatNode | None
    start: int
    part: ChatPart
    output: array[int]
    output_text: str | None
    output_content: str | None

    def text(self) -> str:
        """The exact text of the history from `start` on. All nodes must be decoded."""
        text = ""
        for node in self._from_first():
            assert node.output_text is not None
            text = text[: node.part.keep_chars] + node.part.input_text + node.output_text
        return text

    def messages(self) -> tuple[Message, ...]:
        messages: list[Message] = []
        for node in self._from_first():
            messages += node.part.messages
            messages.append({"role": "assistant", "content": node.output_content})
        return tuple(messages)

    def undecoded(self) -> list[ChatNode]:
        return [node for node in self._from_first() if node.output_text is None]

    def _from_first(self) -> Iterator[ChatNode]:
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return reversed(nodes)


def extend(before: ChatNode | None, kept: int, part: ChatPart, output: array[int]) -> ChatNode:
    """The node after a messages turn that kept `kept` history tokens."""
    return ChatNode(
        parent=before,
        start=kept if before is None else before.start,
        part=part,
        output=output,
        output_text=part.output_text,
        output_content=part.output_content,
    )
