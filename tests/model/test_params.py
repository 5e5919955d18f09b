"""The parameter table: the locked budget, and its command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from vpmoe.config import load_preset
from vpmoe.model.params import add_commands, count_parameters

BUDGET = {
    "embeddings": 411_828_224,
    "grapem": 64,
    "local_attention": 60 * 2_138_376,
    "global_attention": 20 * 2_621_704,
    "dense_ffn": 262_144,
    "routers": 20_709_376,
    "experts": 5_301_600_256,
    "shared_experts": 82_837_504,
    "norms": 164_864,
}


def test_budget_of_6b(repository: Path) -> None:
    table = count_parameters(load_preset(repository / "configs" / "vpmoe-6b.toml").fields)
    assert dict(table.components) == BUDGET
    assert table.total == 5_998_139_072
    assert table.active == 779_376_320
    assert table.active - table.components["embeddings"] == 367_548_096


def run_command(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    options = parser.parse_args(["params", *words])
    return int(options.func(options))


def test_json_is_one_object(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(repository / "configs" / "vpmoe-6b.toml")
    assert run_command(["--config", config, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"total": 5_998_139_072, "active": 779_376_320, "components": BUDGET}


def test_table_shows_every_component(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--config", str(repository / "configs" / "vpmoe-6b.toml")]) == 0
    text = capsys.readouterr().out
    for component, count in BUDGET.items():
        assert component in text
        assert f"{count:,}" in text
    assert "367,548,096 without embeddings" in text


def test_unusable_preset_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--config", str(tmp_path / "none.toml"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no such preset" in captured.err
