"""Twenty kills at random, on 1, 2 and 4 workers: the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vpmoe.data.build import build_dataset
from vpmoe.data.dataset_files import verify_dataset


def test_killed_20_times_and_resumed_gives_the_same_bytes(
    tmp_path: Path,
    make_rows: Callable[..., list[dict[str, str]]],
    write_rows: Callable[..., Path],
    vocabulary: Path,
) -> None:
    inputs = [
        str(write_rows(tmp_path / f"{n}.jsonl", make_rows(600, seed=n, most=300))) for n in (1, 2)
    ]
    plan = {
        "inputs": inputs,
        "output": str(tmp_path),
        "vocabulary": str(vocabulary),
        "kills": 20,
        "seconds": 1.2,
        "seed": 9,
        "block_bytes": 20_000,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("killed_builds.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "plan.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["kills"] == 20
    clean = tmp_path / "clean"
    build_dataset(inputs, clean, valid_fraction="0.2", rows_per_shard=150, vocabulary=vocabulary)
    for number in range(found["builds"]):
        folder = tmp_path / f"build-{number}"
        assert _files(folder) == _files(clean)
        list(verify_dataset(folder))


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
