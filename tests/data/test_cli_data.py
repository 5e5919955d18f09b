"""`vpmoe data`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vpmoe.cli import main


def test_build_verify_inspect(
    built: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = str(built.parent / "rows.jsonl"), str(tmp_path / "out")
    words = ["--input", rows, "--output", output, "--vocabulary", str(vocabulary)]
    assert main(["data", "build", *words, "--valid-fraction", "0.3", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "train: " in out
    assert "skipped: 0 with an empty field, 0 duplicates" in out
    assert main(["data", "verify", output]) == 0
    assert "40 documents" in capsys.readouterr().out
    inspect = ["data", "inspect", output, "--document", "2", "--vocabulary", str(vocabulary)]
    assert main(inspect) == 0
    text = capsys.readouterr().out
    assert text.startswith("<|start|>system<|message|>You are vpMoE.<|end|>")
    assert "<|return|><|endoftext|>" in text
    assert "supervised: analysis" in text
    assert main([*inspect, "--json"]) == 0
    arrays = json.loads(capsys.readouterr().out)
    assert len(arrays["tokens"]) == len(arrays["span"]) == len(arrays["lossmask"])


def test_render_shows_what_build_would_write(
    built: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = str(built.parent / "rows.jsonl")
    words = ["data", "render", "--input", rows, "--vocabulary", str(vocabulary)]
    assert main([*words, "--row", "2", "--profile", "synth_kd_v1"]) == 0
    query = json.loads(Path(rows).read_text("utf-8").splitlines()[1])["query"]
    text = capsys.readouterr().out
    assert f"<|start|>user<|message|>{query}<|end|>" in text
    assert "You are vpMoE, a large language model" in text
    assert main([*words, "--row", "99"]) == 2
    assert "no usable row 99; it has 40" in capsys.readouterr().err


def test_spans_are_coloured_in_a_terminal(built: Path, vocabulary: Path) -> None:
    from vpmoe.data.dataset_files import open_shards, read_manifest
    from vpmoe.data.display import document_text
    from vpmoe.tokenizer import O200kHarmonyTokenizer

    shard = open_shards(built, read_manifest(built))[0]
    part = slice(0, int(shard.lengths[0]))
    arrays = shard.arrays
    text = document_text(
        O200kHarmonyTokenizer(vocabulary),
        arrays["tokens"][part],
        arrays["lossmask"][part],
        arrays["span"][part],
    )
    coloured = {"yellow": "", "green": ""}
    for span in text.spans:
        for colour in coloured:
            if colour in str(span.style):
                coloured[colour] += text.plain[span.start : span.end]
    assert coloured["yellow"].startswith("<|start|>assistant<|channel|>analysis<|message|>")
    assert coloured["yellow"].endswith("<|end|>")
    assert coloured["green"].startswith("<|start|>assistant<|channel|>final<|message|>")
    assert coloured["green"].endswith("<|return|>")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["verify", "absent"], "vpmoe data build"),
        (["inspect", "DATASET", "--document", "999"], "no document 999"),
        (["inspect", "DATASET", "--document", "-1"], "no document -1"),
        (["build", "--input", "absent.jsonl", "--output", "out"], "absent.jsonl: cannot be read"),
    ],
)
def test_errors_are_one_line_and_exit_2(
    built: Path,
    words: list[str],
    match: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    vocabulary: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("O200K_HARMONY_VOCAB_PATH", str(vocabulary))
    words = [str(built) if word == "DATASET" else word for word in words]
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", "build", "--input", "x"])
    assert left.value.code == 2
    assert "--output" in capsys.readouterr().err
