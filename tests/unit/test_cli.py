"""The `dualpath` command: messages and exit codes; nothing is started here but stubs."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_runtime.cli import COMMANDS, main
from agent_runtime.stack.progress import Progress
from agent_runtime.stack.status import Event

ROOT = Path(__file__).parents[2]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["up", "--router.prot", "1"], capsys)
    assert message == "dualpath up: unknown argument '--router.prot'; did you mean --router.port?\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'upp'" in fails(["upp"], capsys)


def test_bad_value(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["up", "--store.segment-bytes", "big"], capsys)
    assert "store.segment_bytes in flag --store.segment-bytes: expected whole number" in message


def test_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "model.path is not set" in fails(["up", "--cpu", "--prefill", "2"], capsys)
    message = fails(["up", "--model", str(tmp_path / "none")], capsys)
    assert "model.path: there is no folder" in message


def test_count_of_a_role_without_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs at least one prefill" in fails(["up", "--model", "x", "--decode", "0"], capsys)
    assert "--decode: expected at least 0" in fails(["up", "--decode", "-1"], capsys)
    groups = "[{role: decode}, {role: decode}]"
    message = fails(["up", "--engines", groups, "--decode", "2"], capsys)
    assert "--decode: the configuration has 2 groups of decode engines" in message


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text("model: {path: /m}\n")
    assert main(["check-config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"
    file.write_text("modle: {path: /m}\n")
    message = fails(["check-config", str(file)], capsys)
    assert f"unknown key 'modle' in {file}:1; did you mean 'model'?" in message


def test_config_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-docs"]) == 0
    assert "| `router.port` | whole number (0 to 65535) | `30000` |" in capsys.readouterr().out


def test_config_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$ref"] == "#/$defs/StackConfig"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "check-config" in capsys.readouterr().out
    assert main(["up", "--help"]) == 0
    assert "--store.segment-bytes" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_under_its_own_name(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    text = capfd.readouterr().out
    assert text.startswith(f"usage: dualpath {command} ")
    assert max(len(line) for line in text.splitlines()) <= 110


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("dualpath ", set(COMMANDS)),
        ("dualpath che", {"check-config "}),
        ("dualpath up --store.pro", {"--store.protocol "}),
        ("dualpath up --router.split-policy dec", {"decode_path "}),
        ("dualpath replay compare --ref", {"--reference-url "}),
        ("dualpath doctor --js", {"--json "}),
        ("dualpath completion z", {"zsh "}),
    ],
)
def test_completion_in_a_shell(line: str, wanted: set[str], tmp_path: Path) -> None:
    """What the script of `dualpath completion bash` asks, and how."""
    answer = tmp_path / "answer"
    env = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_TYPE": "9"}
    env |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    words = [sys.executable, "-m", "agent_runtime.cli"]
    subprocess.run(words, env={**os.environ, **env}, cwd=ROOT, check=False)
    found = set(answer.read_text().split("\n"))
    assert wanted <= found


def test_completion_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "dualpath" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_on_a_signal(number: int, tmp_path: Path) -> None:
    """`dualpath up` with an engine elsewhere and a stub renderer and router stays until told."""
    (tmp_path / "config.json").write_text("{}")
    stub = ROOT / "tests/unit/stack/stub_component.py"
    script = (
        "import sys\n"
        "from agent_runtime import cli\n"
        "from agent_runtime.stack import stack\n"
        "from agent_runtime.stack.commands import Programs\n"
        f"stub = (sys.executable, '-S', {str(stub)!r})\n"
        "stack.Programs = lambda: Programs(engine=stub, renderer=stub, router=stub)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = ["up", "--model", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    words += ["--engines", "[{role: plain}]", "--no-start-router", "--no-store.enabled"]
    words += ["--store.segment-bytes", "0"]
    up = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert up.stdout is not None
    assert up.stdout.readline().startswith("ready after")
    status = json.loads((tmp_path / "run/status.json").read_text())
    engine = status["components"][0]["pid"]
    os.kill(engine, 0)
    up.send_signal(number)
    _, err = up.communicate(timeout=10)
    assert up.returncode == 0
    assert "plain-0      ready" in err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "stopped"
    deadline = time.monotonic() + 2
    while Path(f"/proc/{engine}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_redraws_on_a_terminal() -> None:
    out = Terminal()
    progress = Progress(out)
    progress(Event(0.1, "master", "starting"))
    progress(Event(0.2, "store", "starting"))
    progress(Event(0.3, "master", "ready"))
    progress(Event(0.4, "", "ready"))
    progress(Event(9.0, "store", "failed", "exited with code 1", ("last words",), "a cause"))
    text = out.getvalue()
    assert "\x1b[2A" in text  # two rows, drawn over
    assert "likely cause: a cause" in text
    assert "| last words" in text


def test_progress_in_a_log_is_plain() -> None:
    out = io.StringIO()
    Progress(out)(Event(1.25, "master", "ready"))
    assert out.getvalue() == "[   1.2 s] master       ready\n"
