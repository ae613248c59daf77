"""Recorded text: what sessions share in it, which part of it is replayed, and how it is chosen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_stub_router import StubRouter, served

from agent_runtime.cli import main as dualpath
from benchmarks.replay import traj1
from benchmarks.replay.results import read_result
from benchmarks.replay.scale import scaled
from benchmarks.replay.texts import Texts
from benchmarks.replay.tokens import TokenSource, TokenSpace
from benchmarks.replay.trace import Session, TraceError, Turn
from benchmarks.replay.workload import WorkloadOptions, load
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.testmodel_tokenizer import write_tokenizer

VOCAB = 4096
SOURCE = TokenSource(TokenSpace(VOCAB))
SYSTEM = "You are a careful agent. Every reply holds exactly one command. " * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, vocab=VOCAB, context=32768)
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCAB}))
    return folder


@pytest.fixture(scope="module")
def texts(model: Path) -> Texts:
    return Texts(model)


def say(*texts: str, keep: int = 0, append: int = 50, out: int = 4) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {
        "keep": keep, "append": append, "out": out, "out_kept": out, "gap": "start",
        "gap_s": None, "append_msgs": messages,
    }  # fmt: skip


def row(sid: str, *turns: dict[str, Any]) -> dict[str, Any]:
    return {"v": 1, "dataset": "d", "sid": sid, "turns": list(turns)}


def trace(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.mark.parametrize("factor", [1.0, 0.3, 0.05])
def test_sessions_share_the_heads_of_the_texts_that_they_share(texts: Texts, factor: float) -> None:
    """And what follows is each session's own, also where heads of texts are cut off."""
    made = []
    for task in ("repair the parser of dates", "write a test for the cache"):
        turns = (Turn(0, 50, 4, 4, texts=(SYSTEM, task)), Turn(54, 9, 4, 4, texts=(task,)))
        made.append(SOURCE.appended(texts.sized(Session("d", task, turns), factor)))
    (whole,) = texts.ids([SYSTEM])
    system = scaled(len(whole), factor)
    (one, _), (two, _) = made
    assert one[:system] == two[:system] == whole[:system]
    assert one[system:] != two[system:]


@given(st.data())
@settings(max_examples=60)
def test_every_session_stays_a_chain(texts: Texts, data: st.DataObject) -> None:
    """Sizes are those of the texts; a rewritten context keeps no more than there is."""
    factor = data.draw(st.floats(0.01, 1))
    turns: list[Turn] = []
    for _ in range(data.draw(st.integers(1, 6))):
        context = turns[-1].context if turns else 0
        keep = context if data.draw(st.booleans()) else data.draw(st.integers(0, context))
        out = data.draw(st.integers(0, 30))
        kept = out if data.draw(st.booleans()) else data.draw(st.integers(0, out))
        word = st.text("ab c\u00e9\U0001f600", min_size=1)
        said = data.draw(st.lists(word, min_size=1, max_size=3))
        turns.append(Turn(keep, data.draw(st.integers(1, 90)), out, kept, texts=tuple(said)))
    session = Session("d", "s", tuple(turns))
    made = texts.sized(session, factor)
    context = recorded = 0
    for old, new in zip(turns, made.turns, strict=True):
        lengths = [len(ids) for ids in texts.ids(old.texts or ())]
        assert new.append == sum(scaled(length, factor) for length in lengths)
        assert new.text is not None
        assert (new.text.recorded, new.text.length) == (old.append, sum(lengths))
        assert (new.out, new.texts) == (scaled(old.out, factor), None)
        assert new.keep == context if old.keep == recorded else new.keep <= context
        context, recorded = new.context, old.context
    assert [len(ids) for ids in SOURCE.appended(made)] == [turn.append for turn in made.turns]


def test_a_rewritten_context_is_cut_where_the_recorded_one_was(texts: Texts) -> None:
    """Kept: all of the first append, all of its output, a third of the second append."""
    first, second = "bako " * 30, "feli " * 60
    turns = (
        Turn(0, 100, 8, 8, texts=(first,)),
        Turn(108, 90, 4, 4, texts=(second,)),
        Turn(138, 10, 4, 4, texts=("bako",)),
    )
    one, two, three = texts.sized(Session("d", "s", turns), 1.0).turns
    assert (two.keep, two.append) == (one.append + 8, len(texts.ids([second])[0]))
    assert three.keep == one.append + 8 + round(two.append / 3)


def test_text_that_looks_like_special_tokens_is_text(texts: Texts) -> None:
    (ids,) = texts.ids(["<|im_start|>user<|im_end|><|endoftext|>"])
    assert max(ids) < VOCAB - 3


def test_what_messages_may_look_like(tmp_path: Path, texts: Texts) -> None:
    turn = say("one") | {"append_msgs": [{"role": "a", "content": None}, {"role": "b"}]}
    path = trace(tmp_path, row("s", say("one"), turn | {"keep": 54, "append": 0}))
    (session,) = load(WorkloadOptions(trace=path), texts).sessions
    assert [turn.append for turn in session.turns] == [len(texts.ids(["one"])[0]), 0]
    plain = say() | {"append_msgs": None, "append_text": "one two"}
    (session,) = load(WorkloadOptions(trace=trace(tmp_path, row("s", plain))), texts).sessions
    assert SOURCE.appended(session) == texts.ids(["one two"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"append_msgs": [{"content": 5}]}, "turns[0].append_msgs[0].content: must be a string"),
        ({"append_msgs": ["x"]}, "turns[0].append_msgs[0]: must be a JSON object"),
        ({"append_msgs": {}}, "turns[0].append_msgs: must be a list"),
        ({"append_text": 5}, "turns[0].append_text: must be a string"),
        ({"append_text": "\ud83d"}, "turns[0].append_text: holds half a surrogate pair"),
        ({"append_msgs": []}, "turns[0]: its texts are empty"),
    ],
)
def test_refuses_and_names_line_and_field(
    tmp_path: Path, texts: Texts, change: dict[str, Any], problem: str
) -> None:
    path = trace(tmp_path, row("s", say("one") | change))
    with pytest.raises(TraceError) as caught:
        load(WorkloadOptions(trace=path), texts)
    assert caught.value.message.startswith("t.jsonl:1: " + problem)


def run(tmp_path: Path, path: Path, *more: str) -> tuple[int, dict[str, Any] | None]:
    out = tmp_path / "out"
    with served(StubRouter().app()) as url:
        status = dualpath(["replay", "--url", url, "--out", str(out), "--trace", str(path), *more])
    return status, read_result(out) if status != 2 else None


def test_text_by_default_and_its_lengths_reported(
    tmp_path: Path, model: Path, texts: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path, row("s", say(SYSTEM, "go on"), say("bako", keep=54, append=7)))
    status, result = run(tmp_path, path, "--model-path", str(model), "--scale", "0.5")
    assert (status, result is not None) == (0, True)
    lengths = [len(ids) for ids in texts.ids([SYSTEM, "go on", "bako"])]
    assert result is not None
    assert result["workload"]["text"] == {
        "turns": 2,
        "recorded_tokens": 57,
        "tokens": sum(lengths),
        "replayed_tokens": sum(scaled(length, 0.5) for length in lengths),
    }
    assert "57 recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [["--tokens", "counts", "--model-path", "MODEL"], ["--vocab-size", "500"]]
)
def test_counts_where_asked_for_or_nothing_else_is_possible(
    tmp_path: Path, model: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path, row("s", say(SYSTEM)))
    words = [str(model) if word == "MODEL" else word for word in more]
    status, result = run(tmp_path, path, *words)
    assert result is not None
    assert (status, result["workload"]["text"]) == (0, None)
    assert result["workload"]["append_tokens"] == 50
    assert ("text is not used" in capsys.readouterr().err) == (more[0] == "--vocab-size")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--vocab-size", "500"], "give --model-path"),
        (["--model-path", "MODEL", "--scale", "2"], "scale must be at most 1"),
        (["--model-path", "EMPTY"], "tokenizer.json, which does not exist"),
        (["--model-path", "DAMAGED"], "is no tokenizer"),
        (["--model-path", "MODEL", "--trace", "COUNTS"], "c.jsonl:1: turns[0]: has no text"),
    ],
)
def test_asked_for_text_that_cannot_be(
    tmp_path: Path,
    model: Path,
    more: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = trace(tmp_path, row("s", say(SYSTEM)))
    counts = say()
    del counts["append_msgs"]
    (tmp_path / "c.jsonl").write_text(json.dumps(row("s", counts)) + "\n")
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text('{"model": 5}')
    places = {
        "MODEL": model, "EMPTY": tmp_path / "empty", "DAMAGED": tmp_path / "damaged",
        "COUNTS": tmp_path / "c.jsonl",
    }  # fmt: skip
    status, _ = run(tmp_path, path, "--tokens", "text", *(str(places.get(w, w)) for w in more))
    (said,) = capsys.readouterr().err.splitlines()
    assert (status, problem in said) == (2, True)


def test_unknown_kind_of_tokens() -> None:
    with pytest.raises(ConfigError, match="tokens must be one of auto, text, counts"):
        WorkloadOptions(tokens="words")


def swebench() -> Path:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "traces"
    folder = Path(os.environ.get("DUALPATH_TEST_TRACES", beside))
    return folder / "swebench-gemini3.dev.text.jsonl.gz"


@pytest.mark.skipif(not swebench().exists(), reason="no real traces here (DUALPATH_TEST_TRACES)")
def test_first_prompts_of_real_sessions_start_with_the_same_system_message(texts: Texts) -> None:
    sessions = [session for session, _ in zip(traj1.read(swebench()), range(8), strict=False)]
    prompts = [SOURCE.appended(texts.sized(session, 0.1))[0] for session in sessions]
    system = sessions[0].turns[0].texts
    assert system is not None
    shared = scaled(len(texts.ids(system[:1])[0]), 0.1)
    assert shared > 20
    assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
