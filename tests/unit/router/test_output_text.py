"""Text is the decoding of the token ids, cut at the first stop, however the stream comes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from agent_runtime.dispatch.engine_client import Chunk
from agent_runtime.dispatch.output import Finish, Output
from agent_runtime.dispatch.stops import Stops, stop_patterns, stop_strings
from agent_runtime.dispatch.text import CONTEXT, Detokenizer
from dualpath_sglang.contract.errors import BadRequest
from dualpath_sglang.testmodel_tokenizer import _tokenizer

CORE = Tokenizer.from_str(json.dumps(_tokenizer(1000)))
"""Byte-level: ids 0-255 are the bytes."""
DETOKENIZER = Detokenizer(CORE)
SPECIAL = 998
TEXTS = st.text(st.sampled_from("ab \n🙂é삼\u2028"), max_size=8)
BYTES = st.binary(max_size=12).map(list)
HARD = st.lists(st.sampled_from([0xF0, 0x9F, 0x99, 0x82, 0xE2, 0x82, 0xAC, 65, SPECIAL]))
IDS = st.lists(
    st.one_of(TEXTS.map(lambda t: list(t.encode())), BYTES, HARD, st.lists(st.integers(0, 999))),
    max_size=8,
).map(lambda parts: [token for part in parts for token in part])


def sentencepiece() -> Tokenizer:
    """As Llama 2's: a space belongs to the word after it, unknown characters become bytes."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += ["▁", "▁hello", "▁world", *"abcé"]
    tree = json.loads(CORE.to_str())
    tree["added_tokens"] = [
        {"id": 1, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False},
    ]  # fmt: skip
    tree["pre_tokenizer"] = None
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    tree["decoder"] = {"type": "Sequence", "decoders": decoders}
    tree["model"] |= {
        "unk_token": "<unk>", "byte_fallback": True, "merges": [],
        "vocab": {word: number for number, word in enumerate(vocabulary)},
    }  # fmt: skip
    return Tokenizer.from_str(json.dumps(tree))


PIECES = sentencepiece()
PIECE_IDS = st.lists(
    st.one_of(
        st.integers(259, 265).map(lambda token: [token]),
        st.just([1]),
        st.sampled_from("🙂é삼A").map(lambda c: [3 + byte for byte in c.encode()]),
    ),
    max_size=12,
).map(lambda parts: [token for part in parts for token in part])


def decoded(core: Tokenizer, prompt: Sequence[int], ids: Sequence[int], skip: bool) -> str:
    context = list(prompt[-CONTEXT:])
    if core.decode(context, skip_special_tokens=skip).endswith("\ufffd"):
        context = []
    before = core.decode(context, skip_special_tokens=skip)
    whole: str = core.decode(context + list(ids), skip_special_tokens=skip)
    return whole[len(before) :]


def joined(core: Tokenizer, prompt: Sequence[int], ids: Sequence[int], skip: bool) -> list[str]:
    text = Detokenizer(core).output(prompt, skip_special_tokens=skip)
    return [*(text.push(token) for token in ids), text.finish()]


@given(IDS, IDS, st.booleans())
@example([], [0xF0] * 40 + [0x9F, 0x99, 0x82], True)
def test_pieces_join_to_the_decoded_ids(prompt: list[int], ids: list[int], skip: bool) -> None:
    pieces = joined(CORE, prompt, ids, skip)
    assert "".join(pieces) == decoded(CORE, prompt, ids, skip)


@given(PIECE_IDS, PIECE_IDS, st.booleans())
def test_also_where_a_space_belongs_to_the_next_word(
    prompt: list[int], ids: list[int], skip: bool
) -> None:
    assert "".join(joined(PIECES, prompt, ids, skip)) == decoded(PIECES, prompt, ids, skip)


@given(TEXTS)
def test_pieces_are_whole_characters(text: str) -> None:
    pieces = joined(CORE, [], list(text.encode()), True)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_bytes_that_are_no_text_cost_no_more_with_every_token() -> None:
    """Else a request for one such byte over and over would hold everybody up: all that waits is
    decoded again with every token."""
    text, said = DETOKENIZER.output([]), 0
    for number in range(1, 1000):
        said += len(text.push(0xF0))
        assert number - said <= 8


def chunks(ids: list[int], cuts: Sequence[int], reason: dict[str, Any]) -> list[Chunk]:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    parts = [ids[a:b] for a, b in itertools.pairwise(edges)] or [[]]
    made = [Chunk(part, "", None, {}) for part in parts]
    return [*made[:-1], Chunk(parts[-1], "", reason, {})]


def read(output: Output, given: list[Chunk]) -> tuple[list[int], list[str]]:
    tokens: list[int] = []
    texts: list[str] = []
    for chunk in given:
        new, text = output.take(chunk)
        tokens += new
        texts.append(text)
        if output.finish is not None:
            break
    return tokens, texts


STOPS = st.lists(st.text(st.sampled_from("ab \n🙂"), min_size=1, max_size=3), max_size=3)


@given(IDS, STOPS, st.lists(st.integers(0, 99)), st.booleans())
@example(list(b"xab"), ["ab"], [1, 2], True)
@example(list("a🙂".encode()), ["🙂"], [2, 3], True)
def test_a_stream_is_the_text_cut_at_the_first_stop(
    ids: list[int], stops: list[str], cuts: list[int], trim: bool
) -> None:
    rules = Stops(stop_strings(stops, "stop"), trim=trim)
    output = Output(DETOKENIZER.output([]), rules)
    tokens, texts = read(output, chunks(ids, cuts, {"type": "length", "length": 9}))
    whole = decoded(CORE, [], ids, True)
    found = [stop for stop in stops if stop in whole]
    assert tokens == ids[: len(tokens)]
    if not found:
        assert ("".join(texts), tokens, output.finish) == (whole, ids, Finish("length"))
        return
    # The stop that is complete first decides; of those the one that begins first.
    at = min(whole.index(stop) for stop in found)
    first = min(whole.index(stop) + len(stop) for stop in found)
    assert output.finish is not None
    matched = output.finish.matched
    assert output.finish.type == "stop"
    assert matched in found
    cut = whole.index(str(matched))
    assert "".join(texts) == whole[: cut if trim else cut + len(str(matched))]
    assert at <= cut < first
    if decoded(CORE, [], tokens, True) != whole:
        # No token more than completed it.
        assert len(decoded(CORE, [], tokens[:-1], True).rstrip("\ufffd")) < cut + len(str(matched))
    if trim:
        assert not any(stop in "".join(texts) for stop in stops)


@given(IDS, STOPS)
def test_what_a_cut_short_turn_owes_its_tokens(ids: list[int], stops: list[str]) -> None:
    output = Output(DETOKENIZER.output([]), Stops(tuple(stops)))
    texts = [output.take(Chunk([token], "", None, {}))[1] for token in ids]
    assume(output.finish is None)
    rest = output.rest()
    assume(output.finish is None)
    text = decoded(CORE, [], ids, True)
    assume(not any(stop in text for stop in stops))
    assert "".join(texts) + rest == text


@pytest.mark.parametrize("trim", [True, False])
def test_a_stop_token_is_a_token_and_no_text(trim: bool) -> None:
    output = Output(DETOKENIZER.output([]), Stops(trim=trim))
    reason = {"type": "stop", "matched": ord("c")}
    tokens, texts = read(output, [Chunk([97], "", None, {}), Chunk([98, 99], "", reason, {})])
    assert tokens == [97, 98, 99]
    assert "".join(texts) == ("ab" if trim else "abc")
    assert output.finish == Finish("stop", ord("c"))


def test_a_pattern_ends_the_text_after_its_match() -> None:
    patterns = stop_patterns([r"\d\d", "never"], "stop_regex")
    output = Output(DETOKENIZER.output([]), Stops(patterns=patterns))
    tokens, texts = read(output, chunks(list(b"a1b23c4"), [2], {"type": "length"}))
    assert ("".join(texts), bytes(tokens)) == ("a1b23", b"a1b23")
    assert output.finish == Finish("stop", r"\d\d")


@given(st.text(max_size=30), STOPS, st.lists(st.integers(0, 30)), st.data())
def test_an_engines_own_text_is_cut_alike(
    text: str, stops: list[str], cuts: list[int], data: st.DataObject
) -> None:
    """Where the tokenizer is not known. The engine leaves its stop out, but not how it begins."""
    rules = Stops(stop_strings(stops, "stop"))
    found = sorted((text.index(stop), stop) for stop in stops if stop in text)
    sent = text[: found[0][0]] if found else text
    reason: dict[str, Any] = {"type": "length"}
    if found:
        reason = {"type": "stop", "matched": found[0][1]}
        sent += found[0][1][: data.draw(st.integers(0, len(found[0][1]) - 1))]
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    parts = [sent[a:b] for a, b in itertools.pairwise(edges)] or [""]
    given = [Chunk([7], part, None, {}) for part in parts]
    given.append(Chunk([], "", reason, {}))
    output = Output(None, rules)
    texts = read(output, given)[1]
    assert "".join(texts) == (text[: found[0][0]] if found else text)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("[", "missing ]"),
        (r"(a)\1", "back-references are not supported"),
        ("(?=a)", "look-around"),
        ("(.{1,30}){1,30}x", "too large once compiled"),
        ("a" * 257, "more than 256 bytes"),
        ("", "is empty"),
        ("\ud800", "no RE2 pattern"),
    ],
)
def test_patterns_that_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(BadRequest, match="stop_regex") as caught:
        stop_patterns(["x", pattern], "stop_regex")
    assert caught.value.field == "stop_regex[1]"
    assert words in caught.value.message


def test_a_pattern_that_backtracks_elsewhere_is_no_harm() -> None:
    patterns = stop_patterns("(a+)+c", "stop_regex")
    output = Output(DETOKENIZER.output([]), Stops(patterns=patterns))
    for _ in range(2000):  # a backtracking search would take years
        output.take(Chunk([ord("a")], "", None, {}))
    assert output.finish is None
    output.take(Chunk([ord("c")], "", None, {}))
    assert output.finish == Finish("stop", "(a+)+c")
