"""The shipped conversations are what their generator makes, varied and complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def rows(repository: Path) -> list[dict[str, str]]:
    text = (repository / "data/sample/conversations.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_file_is_the_generators_output(repository: Path) -> None:
    script = repository / "data/sample/generate.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_rows_of_synths_form_have_every_field_of_real_ones(repository: Path) -> None:
    text = (repository / "data/sample/synth_rows.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    texts = ("query", "synthetic_reasoning", "synthetic_answer")
    assert len(rows) >= 30
    for number, row in enumerate(rows):
        assert list(row)[:2] == ["source", "index"]
        assert row["index"] == number
        assert all(row[name].strip() for name in texts)
        assert "synth_id" not in row
    assert len({row["language"] for row in rows}) >= 6
    real = repository.parent / "shared" / "data" / "synth_rows_valid.jsonl"
    if real.exists():
        first = json.loads(real.read_text("utf-8").partition("\n")[0])
        assert set(first) <= set(rows[0])
        taken = {row["query"] for row in rows} & set(real.read_text("utf-8").splitlines())
        assert not taken


def test_rows_are_varied_and_complete(rows: list[dict[str, str]]) -> None:
    fields = {"synth_id", "query", "synthetic_reasoning", "synthetic_answer"}
    assert len(rows) >= 300 + 20
    assert len({row["synth_id"] for row in rows}) == len(rows)
    assert all(set(row) == fields and all(row.values()) for row in rows)
    assert len({row["query"] for row in rows}) >= 300
    scripts = {row["synth_id"].split("-")[1] for row in rows if "handwritten" in row["synth_id"]}
    assert len(scripts) >= 20
