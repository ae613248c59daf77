"""The messages survive the wire, and bad ones are refused by field."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from dualpath_sglang.contract import render
from dualpath_sglang.contract.errors import (
    BadRequest,
    BodyTooLarge,
    DualPathError,
    RendererFailure,
)
from dualpath_sglang.contract.render import (
    Delta,
    Detokenize,
    RenderDelta,
    RenderError,
    Reply,
    Request,
    Rewrite,
    Text,
    Tokenize,
    Tokens,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    request_id_of,
)

USER = {"role": "user", "content": "line\nbreak \u2028 é"}


@pytest.mark.parametrize(
    "request_",
    [
        Tokenize("a\nb\u2028 é"),
        Detokenize((1, 2)),
        RenderDelta("", (), (USER,)),
        RenderDelta("h", (USER,), (USER,), "cut", (1, 2), ({"name": "ls"},), {"think": False}),
    ],
)
def test_requests_survive_the_wire(request_: Request) -> None:
    line = encode_request(7, request_)
    assert line.count(b"\n") == 1
    assert decode_request(line) == (7, request_)


@pytest.mark.parametrize(
    "reply",
    [
        Tokens((1, 2)),
        Text("a<eos>", "a"),
        Delta((1,), "x"),
        Delta((1,), "x", keep_tokens=3, keep_chars=9),
        Rewrite(2, "why"),
        RenderError("internal", "why", "text"),
    ],
)
def test_replies_survive_the_wire(reply: Reply) -> None:
    assert decode_reply(encode_reply(7, reply)) == (7, reply)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"v": 2}, "v"),
        ({"id": "x"}, "id"),
        ({"id": True}, "id"),
        ({"op": "sing"}, "op"),
        ({"op": ["tokenize"]}, "op"),
        ({"text": 3}, "text"),
        ({"txt": "typo"}, "txt"),
        ({"op": "detokenize", "text": None}, "text"),
        ({"request": []}, "request"),
    ],
)
def test_a_bad_request_names_its_field(change: dict[str, Any], field: str) -> None:
    request = {"op": "tokenize", "text": "x"}
    line = {"v": 1, "id": 5, "request": request}
    for name, value in change.items():
        (line if name in line else request)[name] = value
    with pytest.raises(BadRequest) as caught:
        decode_request(json.dumps(line).encode())
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"op": "tokenize"}, "text"),
        ({"op": "detokenize", "token_ids": [1, True]}, "token_ids"),
        ({"op": "detokenize", "token_ids": [1.0]}, "token_ids"),
        ({"op": "detokenize", "token_ids": "12"}, "token_ids"),
        ({"op": "render_delta", "history_text": "", "messages_before": []}, "messages_new"),
        (
            {
                "op": "render_delta",
                "history_text": "",
                "messages_before": [],
                "messages_new": [],
                "on_rewrite": "maybe",
            },
            "on_rewrite",
        ),
    ],
)
def test_a_missing_or_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    line = json.dumps({"v": 1, "id": 5, "request": fields}).encode()
    with pytest.raises(BadRequest) as caught:
        decode_request(line)
    assert caught.value.field == field
    assert request_id_of(line) == 5


@pytest.mark.parametrize("line", [b"", b"\n", b"[]", b"null", b"\xff", b"{" * 10, b"[" * 100_000])
def test_a_line_that_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_request(line)
    with pytest.raises(RendererFailure):
        decode_reply(line)
    assert request_id_of(line) is None


def test_text_that_is_no_unicode_cannot_be_sent() -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        encode_request(1, Tokenize("\ud800"))


def test_lines_over_the_limit_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "LINE_LIMIT", 100)
    with pytest.raises(BodyTooLarge, match="limit of 100"):
        encode_request(1, Tokenize("x" * 100))
    with pytest.raises(BodyTooLarge, match="limit is 100"):
        decode_request(b" " * 101)


@pytest.mark.parametrize(
    ("kind", "status"),
    [("bad_request", 400), ("template_error", 400), ("too_large", 413), ("internal", 502)],
)
def test_errors_become_the_projects_exceptions(kind: Any, status: int) -> None:
    error = RenderError(kind, "why").to_exception()
    assert isinstance(error, DualPathError)
    assert error.http_status == status


def test_the_contract_imports_the_standard_library_and_msgspec_only() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import dualpath_sglang.contract.render\n"
        "tops = {name.split('.')[0] for name in sys.modules.keys() - before}\n"
        "print(sorted(tops - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # msgspec imports typing_extensions where they are installed, and needs them nowhere.
    found = done.stdout.replace(", 'typing_extensions'", "").strip()
    assert found == "['dualpath_sglang', 'msgspec']"
