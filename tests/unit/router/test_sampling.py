"""No number reaches an engine that it cannot hold or that makes no sense."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.dispatch.sampling import INT32, MAX_BIAS, Sampling, checked, schema
from dualpath_sglang.contract.errors import BadRequest

VOCABULARY = 4096
SCHEMAS = '{"type": "object"}'
ACCEPTED: list[dict[str, Any]] = [
    {"top_k": INT32},
    {"top_k": -1},
    {"temperature": 0},
    {"temperature": 2.0001},
    {"top_p": 1},
    {"stop": ["x"] * 32},
    {"stop": "\ud83d\ude42"},
    {"logit_bias": {"0": -MAX_BIAS, "4095": MAX_BIAS}},
    {"sampling_seed": -(2**63)},
    {"stop_token_ids": [0, 4095]},
    {"json_schema": SCHEMAS, "regex": ""},
    {"max_new_tokens": 5, "min_new_tokens": 5},
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"top_k": 2147483648}, "top_k", "<= 2147483647 (got 2147483648)"),
    ({"top_k": -2}, "top_k", ">= -1"),
    ({"top_k": 0}, "top_k", "use -1"),
    ({"top_k": 1.5}, "top_k", "Expected integer"),
    ({"top_k": True}, "top_k", "got boolean"),
    ({"min_new_tokens": 1, "stop_token_ids": [151645]}, "stop_token_ids[0]", "0 to 4095"),
    ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]", "-1"),
    ({"stop_token_ids": [2**70]}, "stop_token_ids[0]", "vocabulary"),
    ({"stop_token_ids": list(range(2000))}, "stop_token_ids", "<= 1024"),
    ({"stop_regex": "["}, "stop_regex", "missing ]"),
    ({"stop": ""}, "stop", "is empty"),
    ({"stop": ["zz", ""]}, "stop[1]", "is empty"),
    ({"stop": ["x"] * 33}, "stop", "at most 32"),
    ({"stop": "x" * 4097}, "stop", "4096 characters"),
    ({"stop": 3}, "stop", "Expected string"),
    ({"temperature": -0.1}, "temperature", ">= 0"),
    ({"temperature": 1e39}, "temperature", "<= 10000"),
    ({"temperature": float("nan")}, "temperature", "number"),
    ({"temperature": float("inf")}, "temperature", "number"),
    ({"temperature": 10**400}, "temperature", "out of range"),
    ({"top_p": 0}, "top_p", "> 0"),
    ({"top_p": 1e-39}, "top_p", "too small"),
    ({"min_p": 1.1}, "min_p", "<= 1"),
    ({"repetition_penalty": 1e-30}, "repetition_penalty", ">= 0.001"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "<= 2"),
    ({"logit_bias": {"4096": 1}}, "logit_bias", "vocabulary"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "vocabulary"),
    ({"logit_bias": {"1_0": 1}}, "logit_bias", "vocabulary"),
    ({"logit_bias": {"\u0661": 1}}, "logit_bias", "vocabulary"),
    ({"logit_bias": {"1": 1e38}}, "logit_bias[...]", "<= 1000000"),
    ({"sampling_seed": 2**63}, "sampling_seed", "<="),
    ({"max_new_tokens": 2**31}, "max_new_tokens", "<="),
    ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens", "above max_new_tokens 2"),
    ({"regex": "a", "json_schema": "{}"}, "regex", "give one of them"),
    ({"regex": "\u0000a"}, "regex", "NUL"),
    ({"ebnf": "x" * 300_000}, "ebnf", "262144 bytes"),
    ({"n": 2}, "n", "unknown field"),
    ({"temprature": 0}, "temprature", "did you mean 'temperature'"),
    ({"custom_params": {}}, "custom_params", "unknown field"),
]


@pytest.mark.parametrize("given", ACCEPTED)
def test_what_engines_can_hold(given: dict[str, Any]) -> None:
    engine = checked(given, VOCABULARY).engine
    assert engine == {name: value for name, value in given.items() if value != ""}


@pytest.mark.parametrize(("given", "field", "words"), REFUSED)
def test_what_they_cannot(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked(given, VOCABULARY, prefix="sampling.")
    assert caught.value.field == f"sampling.{field}"
    assert words in caught.value.message


NUMBERS = st.one_of(
    st.integers(), st.integers(-(2**65), 2**65), st.floats(), st.floats(-3, 3), st.booleans()
)
LISTS = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3), st.none(), st.text(max_size=3))
BIASES = st.dictionaries(st.integers().map(str), NUMBERS, max_size=2)


@given(st.dictionaries(st.sampled_from(Sampling.__struct_fields__), LISTS | BIASES, max_size=4))
def test_numbers_that_pass_fit(given: dict[str, Any]) -> None:
    """Whatever is sent, it is refused by name or every number fits where an engine puts it."""
    try:
        made = checked(given, VOCABULARY)
    except BadRequest:
        return
    assert "stop_regex" not in made.engine
    for name, value in made.engine.items():
        values = value.values() if isinstance(value, dict) else value
        for number in values if isinstance(value, dict | list) else [value]:
            if isinstance(number, float):
                struct.pack("<f", number)
            elif isinstance(number, int):
                struct.pack("<q" if name == "sampling_seed" else "<i", number)
        if name == "stop_token_ids":
            assert all(0 <= token < VOCABULARY for token in value)


def test_an_unknown_vocabulary_still_bounds_ids() -> None:
    checked({"stop_token_ids": [10**6]}, None)
    with pytest.raises(BadRequest):
        checked({"stop_token_ids": [2**31]}, None)


def test_the_schema_names_every_field() -> None:
    assert schema()["properties"].keys() == set(Sampling.__struct_fields__)
