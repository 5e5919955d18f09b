"""The published SYNTH smoke set, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vpmoe.data.build import build_dataset

pytestmark = pytest.mark.shared_data


def test_equals_the_independent_tokenisation(
    shared_data: Path, tmp_path: Path, write_rows: Callable[..., Path], vocabulary: Path
) -> None:
    smoke = shared_data / "synth_kd_v1_smoke" / "valid"
    rows = [
        json.loads(line)
        for line in (shared_data / "synth_rows_valid.jsonl").read_text("utf-8").splitlines()
    ]
    compared = documents = 0
    for source in sorted({row["source"] for row in rows}):
        mine = sorted((r for r in rows if r["source"] == source), key=lambda row: row["index"])
        path = write_rows(tmp_path / f"{source}.jsonl", mine)
        output = tmp_path / source
        result = build_dataset([path], output, profile="synth_kd_v1", vocabulary=vocabulary)
        documents += result.manifest["splits"]["train"]["rows"]
        for array in ("tokens", "lossmask", "span"):
            for suffix in ("bin", "idx"):
                ours = (output / "train" / f"shard_00_{array}.{suffix}").read_bytes()
                assert ours == (smoke / f"{source}_{array}.{suffix}").read_bytes()
                compared += 1
    assert (documents, compared) == (112, 24)
    assert len(list(smoke.iterdir())) == compared
