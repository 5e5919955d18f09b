"""`vpmoe tokenizer`, run as a process would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vpmoe.cli import main
from vpmoe.tokenizer import O200kHarmonyTokenizer


def test_encode_and_decode(
    vocabulary: Path, tokenizer: O200kHarmonyTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--path", str(vocabulary)]
    text = "héllo 🌈 <|end|>"
    assert main(["tokenizer", "encode", *path, text]) == 0
    ids = capsys.readouterr().out.split()
    assert [int(n) for n in ids] == tokenizer.tokenize(text)
    assert main(["tokenizer", "encode", *path, "--special", "--json", text]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == tokenizer.encode(text, allowed_special="all")
    assert found["tokens"][-1] == "<|end|>"


def test_a_pipe_through_encode_and_decode_is_lossless(vocabulary: Path) -> None:
    text = "zwei\nZeilen 🌈\n".encode()
    command = [sys.executable, "-m", "vpmoe.cli", "tokenizer"]
    path = ["--path", str(vocabulary)]
    ids = subprocess.run([*command, "encode", *path], input=text, capture_output=True, check=True)
    back = subprocess.run(
        [*command, "decode", *path], input=ids.stdout, capture_output=True, check=True
    )
    assert back.stdout == text


def test_install_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.tiktoken"
    assert main(["tokenizer", "install", "--path", str(path)]) == 0
    assert main(["tokenizer", "verify", "--path", str(path)]) == 0
    assert "446a9538" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["tokenizer", "verify", "--path", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_errors_are_one_line(vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ["--path", str(vocabulary)]
    assert main(["tokenizer", "decode", *path, "201088"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["tokenizer", "decode", *path, "x"]) == 2
    assert "integer ids" in capsys.readouterr().err
