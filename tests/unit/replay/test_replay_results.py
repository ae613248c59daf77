"""The whole way: command line, result against its schema, report, comparison."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from replay_stub_router import StubEngine, StubRouter, served

from agent_runtime.cli import main as dualpath
from benchmarks.replay import html_report
from benchmarks.replay.compare import prompts
from benchmarks.replay.html_report import render
from benchmarks.replay.results import read_result, read_tokens

COMPARE = ("replay", "compare", "--run")
pytestmark = pytest.mark.timeout(60)
SCHEMA = json.loads(Path(html_report.__file__).with_name("schema.json").read_text())


def command(url: str, out: Path, *more: str) -> list[str]:
    return [
        "replay", "--url", url, "--out", str(out), "--vocab-size", "500", "--generate", "32k",
        "--scale", "0.01", "--sessions", "4", "--turns", "5", "--min-turns", "5",
        "--settle", "0", *more,
    ]  # fmt: skip


def replayed(tmp_path: Path, stub: StubRouter, *more: str) -> tuple[int, dict[str, Any]]:
    with served(stub.app()) as url:
        status = dualpath(command(url, tmp_path, *more))
    result = read_result(tmp_path)
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    return status, result


def test_the_schema_is_a_schema_and_describes_every_level() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["additionalProperties"] is False


def test_offline_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = replayed(tmp_path, StubRouter(), "--flush-after-turn", "3")
    assert status == 0
    assert (result["sessions"], result["turns"], result["completed_turns"]) == (4, 20, 20)
    assert (result["errors"], result["compared_turns"], result["outputs_equal"]) == (0, 0, False)
    assert result["comparison"] is None
    records = result["turn_records"]
    cached = sum(turn["prefill"]["device"] for turn in records)
    assert result["cached_tokens"] == {"device": cached, "host": 0, "storage": 0, "peer": 0}
    assert result["cached_tokens_decode"] == {"device": cached, "host": 0, "storage": 20, "peer": 0}
    assert result["computed_tokens"] + cached == result["prompt_tokens"]
    assert result["prompt_tokens"] == result["workload"]["prompt_tokens"]
    assert result["output_tokens"] == result["workload"]["output_tokens"]
    assert result["jct_s"]["count"] == 4
    assert result["command"][:3] == ["dualpath", "replay", "--url"]
    assert result["versions"]["python"]
    assert result["machine"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "not compared" in shown
    assert "report.html" in shown


def test_silent_decode_engines_are_null_not_zero(tmp_path: Path) -> None:
    stub = StubRouter()
    stub.decode_reports = False
    _, result = replayed(tmp_path, stub)
    assert result["cached_tokens_decode"] == {
        "device": None,
        "host": None,
        "storage": None,
        "peer": None,
    }
    assert "did not report" in (tmp_path / "report.html").read_text()


def test_open_loop_with_goodput(tmp_path: Path) -> None:
    more = ("--rate", "100", "--goodput", "ttft:100000", "tpot:100000", "--seed", "5")
    status, result = replayed(tmp_path, StubRouter(), *more)
    assert status == 0
    assert result["driving"]["mode"] == "open-loop"
    assert len(result["driving"]["arrivals_s"]) == 4
    assert result["goodput"]["good_turns"] == 20
    assert result["goodput"]["good_fraction"] == 1.0
    tight = ("--rate", "100", "--goodput", "ttft:0.001", "tpot:100000")
    _, result = replayed(tmp_path, StubRouter(), *tight)
    assert result["goodput"]["good_turns"] == 0


def test_errors_are_counted_and_never_good(tmp_path: Path) -> None:
    stub = StubRouter()
    stub.faults = {2: "event"}
    stub.fault_session = "seed0-00000"
    more = ("--goodput", "ttft:100000", "tpot:100000")
    status, result = replayed(tmp_path, stub, *more)
    assert status == 1
    assert (result["errors"], result["turns"], result["completed_turns"]) == (1, 20, 17)
    assert result["goodput"]["good_fraction"] == 17 / 20
    assert "P died" in (tmp_path / "report.html").read_text()
    with served(StubEngine().app()) as url:
        status = dualpath([*COMPARE, str(tmp_path), "--reference-url", url])
    result = read_result(tmp_path)
    assert status == 1
    assert (result["compared_turns"], result["outputs_equal"]) == (17, False)
    assert result["comparison"]["not_compared_turns"] == 3


def test_nothing_works(tmp_path: Path) -> None:
    status = dualpath(command("http://127.0.0.1:9", tmp_path))
    result = read_result(tmp_path)
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    assert status == 1
    assert (result["errors"], result["completed_turns"]) == (4, 0)


def test_equal_outputs(tmp_path: Path) -> None:
    replayed(tmp_path, StubRouter())
    engine = StubEngine()
    with served(engine.app()) as url:
        status = dualpath([*COMPARE, str(tmp_path), "--reference-url", url + "/"])
    result = read_result(tmp_path)
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    assert status == 0
    assert (result["compared_turns"], result["outputs_equal"]) == (20, True)
    assert result["comparison"]["first_difference"] is None
    sent = sorted(len(body["input_ids"]) for body in engine.bodies)
    assert sent == sorted(turn["prompt_tokens"] for turn in result["turn_records"])
    assert all(body["sampling_params"]["temperature"] == 0.0 for body in engine.bodies)
    assert "yes, 20 of 20" in (tmp_path / "report.html").read_text()


def test_a_differing_token_is_reported_and_never_forgiven(tmp_path: Path) -> None:
    _, result = replayed(tmp_path, StubRouter())
    victim = result["turn_records"][7]
    engine = StubEngine()
    engine.wrong = {victim["prompt_tokens"]}
    with served(engine.app()) as url:
        status = dualpath([*COMPARE, str(tmp_path), "--reference-url", url])
    result = read_result(tmp_path)
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    assert status == 1
    assert (result["compared_turns"], result["outputs_equal"]) == (20, False)
    first = result["comparison"]["first_difference"]
    assert (first["session"], first["turn"]) == (victim["session"], victim["turn"])
    assert first["position"] == victim["out"] - 1
    assert first["reference"] == first["run"] + 1


def test_a_reference_that_fails_compares_nothing(tmp_path: Path) -> None:
    _, result = replayed(tmp_path, StubRouter())
    engine = StubEngine()
    engine.broken = {result["turn_records"][0]["prompt_tokens"]}
    with served(engine.app()) as url:
        status = dualpath([*COMPARE, str(tmp_path), "--reference-url", url])
    result = read_result(tmp_path)
    assert status == 1
    assert result["outputs_equal"] is False
    assert result["comparison"]["differing_turns"] == 0
    assert "500" in result["comparison"]["errors"][0]["message"]


def test_damaged_tokens_are_found_by_their_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(tmp_path, StubRouter())
    tokens = read_tokens(tmp_path)
    assert [len(prompt) for prompt in prompts(tokens)] == [t.prompt_tokens for t in tokens]
    path = tmp_path / "tokens.jsonl"
    path.write_text(re.sub(r'"output":\[(\d+)', r'"output":[999999', path.read_text(), count=1))
    status = dualpath([*COMPARE, str(tmp_path), "--reference-url", "http://127.0.0.1:9"])
    assert status == 2
    assert "digest differs" in capsys.readouterr().err


class Links(HTMLParser):
    """Collects whatever makes a browser load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object"):
            self.found.append((tag, None))
        self.found += [a for a in attrs if a[0] in ("src", "href", "xlink:href", "srcset")]


def test_the_report_is_self_contained(tmp_path: Path) -> None:
    _, result = replayed(tmp_path, StubRouter())
    page = (tmp_path / "report.html").read_text()
    assert page == render(result)
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("<svg") == 5
    assert "prefers-color-scheme: dark" in page
    assert "nan" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S).lower().split()


def test_the_report_escapes_what_it_shows(tmp_path: Path) -> None:
    _, result = replayed(tmp_path, StubRouter())
    result["session_records"][0]["error"] = {"kind": "x", "message": "<script>", "status": None}
    assert "<script>" not in render(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--trace", "absent.jsonl"], "exactly one of --trace and --generate"),
        (["--scale", "0"], "scale must be"),
        (["--sessions", "0"], "sessions must be at least 1"),
        (["--gaps", "some"], "gaps must be"),
        (["--rate", "0"], "rate must be"),
        (["--goodput", "ttft:1", "x:2"], "goodput must be"),
        (["--model-path", "absent"], "exactly one of --model-path and --vocab-size"),
        (["--arrivals", "late"], "arrivals must be"),
        (["--arrivals", "recorded"], "start_s is not recorded"),
        (["--arrivals", "recorded", "--rate", "1"], "only one of --rate and --arrivals"),
        (["--max-gap", "-1"], "max-gap must be"),
        (["--flush-after-turn", "0"], "flush-after-turn"),
        (["--url", "localhost:80"], "url must be"),
        (["--turns", "4"], "no session passes"),
        (["--nonsense"], "unknown argument '--nonsense'"),
    ],
)
def test_bad_input_is_status_2_and_says_what(
    tmp_path: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dualpath(command("http://127.0.0.1:9", tmp_path, *change)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compare_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dualpath([*COMPARE, str(tmp_path), "--reference-url", "http://x"]) == 2
    assert "is not a replay result" in capsys.readouterr().err


def test_a_flush_that_fails_stops_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.replay.router.FLUSH_PAUSE_S", 0.0)
    stub = StubRouter()
    stub.flush_failures = 1000
    with served(stub.app()) as url:
        assert dualpath(command(url, tmp_path, "--flush-after-turn", "1")) == 1
    assert "midway stop after turn 1" in capsys.readouterr().err


def test_an_interrupted_replay_ends_at_once_and_writes_nothing(tmp_path: Path) -> None:
    stub = StubRouter()
    stub.faults = {0: "hang"}
    with served(stub.app()) as url:
        words = [sys.executable, "-m", "agent_runtime.cli", *command(url, tmp_path)]
        # A shell's background job, as CI may be, ignores SIGINT, and so would its children.
        process = subprocess.Popen(
            words,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not stub.running and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    happened = [entry[0] for entry in stub.log]
    assert happened.count("delete") == happened.count("create") > 0
