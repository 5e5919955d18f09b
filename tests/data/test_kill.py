"""Twenty kills at random, on 1, 2 and 4 workers: the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

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


def test_workers_end_with_a_build_that_is_killed(
    tmp_path: Path,
    make_rows: Callable[..., list[dict[str, str]]],
    write_rows: Callable[..., Path],
    vocabulary: Path,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(4000, most=2000))
    words = ["--input", str(rows), "--output", str(tmp_path / "out"), "--workers", "3"]
    command = [sys.executable, "-m", "vpmoe.cli", "data", "build", *words]
    build = subprocess.Popen([*command, "--vocabulary", str(vocabulary)])
    try:
        workers = _wait_for(lambda: _workers_of(build.pid, 3), 60.0)
    finally:
        build.kill()
        build.wait()
    _wait_for(lambda: not any(psutil.pid_exists(pid) for pid in workers), 5.0)


def _workers_of(build: int, count: int) -> list[int]:
    children = [child.pid for child in psutil.Process(build).children()]
    return children if len(children) >= count else []


def _wait_for[T](condition: Callable[[], T], seconds: float) -> T:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
