"""The process as the stack starts it, and what it reads from a model folder."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from render_models import CHATML, TRIMS, make_model, write_model

from dualpath_sglang.contract.errors import BadRequest, StartupError
from dualpath_sglang.contract.render import Tokenize, Tokens, decode_reply, encode_request
from dualpath_sglang.renderer.model_files import load_model_files

COMMAND = [sys.executable, "-m", "dualpath_sglang.renderer"]


def test_ready_answers_and_leaves_nothing_after_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "s"
    words = ["--model-path", str(write_model(tmp_path / "model")), "--socket", str(path)]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            maps = Path(f"/proc/{process.pid}/maps")
            assert not maps.exists() or "libtorch" not in maps.read_text()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(encode_request(1, Tokenize("x")))
                with client.makefile("rb") as lines:
                    assert isinstance(decode_reply(lines.readline())[1], Tokens)
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(10) == 0
        finally:
            process.kill()
    assert not path.exists()


def test_a_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    words = ["--model-path", str(tmp_path / "none"), "--socket", str(tmp_path / "s")]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(StartupError, match=r"tokenizer\.json cannot be read"):
        load_model_files(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StartupError, match=r"tokenizer\.json is missing"):
        load_model_files(folder)
    (write_model(tmp_path) / "config.json").write_text("[]")
    with pytest.raises(StartupError, match=r"config\.json must hold a JSON object"):
        load_model_files(folder)


def test_a_tokenizer_that_changes_text_at_seams_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StartupError, match="seams"):
        load_model_files(folder)


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    plain = load_model_files(folder).tokenizer.encode("a long text")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_model_files(folder).tokenizer.encode("a long text") == plain


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    folder = write_model(tmp_path, TRIMS)
    (folder / "chat_template.jinja").write_text(CHATML)
    text = load_model_files(folder).template.render([{"role": "user", "content": " x "}])
    assert "\n x <|im_end|>" in text


def test_tools_choose_the_template_made_for_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "default", "template": CHATML},
        {"name": "tool_use", "template": "with {{ tools | length }} tools"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    template = load_model_files(folder).template
    user = {"role": "user", "content": "x"}
    assert template.render([user], tools=[{"name": "ls"}]) == "with 1 tools"
    assert template.render([user]).startswith("<|im_start|>user\nx")


def test_both_end_tokens_are_known_and_ids_are_checked(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (end,), (other,) = map(model.tokenizer.encode, ("<|im_end|>", "<|endoftext|>"))
    assert model.tokenizer.eos_ids == {end, other}
    with pytest.raises(BadRequest, match=r"not in \[0, 300\)"):
        model.tokenizer.decode((300,))
