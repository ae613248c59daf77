"""The plan message: golden files, schema, and what no input may break."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_sglang.contract import plan as plan_module
from dualpath_sglang.contract.plan import (
    CLAMPED,
    IGNORED,
    MAX_DEADLINE_MS,
    MAX_PAGE_TOKENS,
    MAX_PAGES,
    Plan,
    clamp,
    parse_kv_hints,
    to_kv_hints,
)

GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "plan").glob("*.json"))
SCHEMA = json.loads(Path(plan_module.__file__).with_name("plan.schema.json").read_text())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
peers = st.lists(st.sampled_from(["10.0.0.7:1", "d-0.local:65535", "[::1]:18011"]), max_size=3)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    n = draw(st.integers(0, MAX_PAGES))
    endpoints = tuple(draw(peers))
    return Plan(
        plan_id=draw(st.text("0123456789abcdef", min_size=1, max_size=64)),
        n=n,
        k=draw(st.integers(0, n if endpoints else 0)),
        page=draw(st.integers(1, MAX_PAGE_TOKENS)),
        peer=endpoints,
        deadline_ms=draw(st.integers(1, MAX_DEADLINE_MS)),
        fingerprint=draw(st.text("0123456789abcdef", max_size=64)),
    )


def as_payload(plan: Plan | None) -> dict[str, Any] | None:
    return None if plan is None else msgspec.structs.asdict(plan) | {"peer": list(plan.peer)}


def schema_accepts(hints: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(hints))


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 20
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = json.loads(path.read_text())
    counted: Counter[str] = Counter()
    assert as_payload(parse_kv_hints(case["hints"], counted)) == case["plan"]
    assert counted == case["counted"]
    assert schema_accepts(case["hints"]) == case["schema_valid"]


def test_the_split_golden_is_what_the_router_sends() -> None:
    case = json.loads(next(p for p in GOLDEN if p.stem == "split").read_text())
    plan = Plan(**case["plan"] | {"peer": tuple(case["plan"]["peer"])})
    assert to_kv_hints(plan) == case["hints"]


@given(plans())
def test_a_plan_survives_the_journey_and_fits_the_schema(plan: Plan) -> None:
    hints = json.loads(json.dumps(to_kv_hints(plan)))
    counted: Counter[str] = Counter()
    assert parse_kv_hints(hints, counted) == plan
    assert not counted
    jsonschema.validate(hints, SCHEMA)


@given(json_values)
def test_no_json_raises(value: Any) -> None:
    counted: Counter[str] = Counter()
    assert parse_kv_hints(value, counted) is None
    assert set(counted) <= {*IGNORED, *CLAMPED}
    assert bool(counted) == (value is not None)


@given(plans(), st.data())
def test_a_spoilt_plan_is_ignored_or_lies_within_bounds(plan: Plan, data: st.DataObject) -> None:
    hints = to_kv_hints(plan)
    holder = data.draw(st.sampled_from([hints, hints["actions"][0]]))
    payload = hints["actions"][0]["payload"]
    if data.draw(st.booleans()):
        holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(json_values)
    payload[data.draw(st.sampled_from(sorted(payload)))] = data.draw(json_values)
    counted: Counter[str] = Counter()
    parsed = parse_kv_hints(hints, counted)
    if parsed is None:
        assert counted or hints["actions"] == []
        return
    assert 0 <= parsed.k <= parsed.n <= MAX_PAGES
    assert parsed.k == 0 or parsed.peer
    assert 1 <= parsed.deadline_ms <= MAX_DEADLINE_MS
    assert as_payload(parsed) == {key: payload[key] for key in as_payload(parsed) or ()} or counted
    jsonschema.validate(to_kv_hints(parsed), SCHEMA)


@given(plans(), st.integers(-5, 10**6))
def test_clamp_leaves_the_last_token_to_compute(plan: Plan, prompt_tokens: int) -> None:
    counted: Counter[str] = Counter()
    fitted = clamp(plan, prompt_tokens, plan.page, counted)
    assert fitted is not None
    assert 0 <= fitted.k <= fitted.n <= plan.n
    assert fitted.n * plan.page <= max(0, prompt_tokens - 1)
    assert fitted.k == min(plan.k, fitted.n)
    assert clamp(fitted, prompt_tokens, plan.page, Counter()) == fitted
    assert bool(counted) == (fitted != plan)


def test_a_plan_for_another_page_size_is_ignored_and_counted() -> None:
    plan = Plan("a", 4, 2, 16, ("h:1",), 1000, "")
    counted: Counter[str] = Counter()
    assert clamp(plan, 1000, 64, counted) is None
    assert counted == {"page_mismatch": 1}
