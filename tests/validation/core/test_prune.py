"""`golden prune`: old run folders go, and nothing that somebody needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from validation import pruning
from validation.cli import main
from validation.config import CaseError, read_declaration
from validation.config.retention import Retention
from validation.pruning import choose, delete, delete_rests

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that declares a case."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "golden.toml").write_text('cases = ["my_cases"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_folder(root: Path, days: float, lane: str = "cpu", now: datetime = NOW) -> Path:
    """A run folder of some days ago, with a verdict and a file of 1000 bytes."""
    stamp = (now - timedelta(days=days)).strftime("%Y%m%dT%H%M%S")
    path = root / "runs" / f"{stamp}-{lane}-0123456789ab"
    path.mkdir(parents=True)
    (path / "verdict.json").write_text("{}")
    (path / "log.txt").write_text("x" * 998)
    return path


def gone(root: Path, keep: int = 1, days: int = 30) -> list[Path]:
    """What a policy would delete."""
    return [old.path for old in choose(root / "runs", Retention(keep, days), NOW)[0]]


def test_what_is_old_and_not_among_the_newest_goes(root: Path) -> None:
    folders = [run_folder(root, age) for age in (90, 60, 45, 31, 29, 1)]
    assert gone(root, keep=1) == folders[:4]
    assert gone(root, keep=4) == folders[:2]
    assert gone(root, keep=9) == []
    assert gone(root, keep=1, days=0) == folders[:5]
    assert gone(root, keep=1, days=36500) == []


def test_what_somebody_needs_stays(root: Path) -> None:
    plain = run_folder(root, 99)
    latest = run_folder(root, 90, "h200-x2")
    bench = run_folder(root, 80)
    (bench / "bench.json").write_text("{}")
    unsent, sent = run_folder(root, 70), run_folder(root, 60)
    for path, was in ((unsent, False), (sent, True)):
        state = {"stores": {"http://x": {"sent": was}, "sqlite:///y": {"sent": was}}}
        (path / "publish.json").write_text(json.dumps(state))
    future = run_folder(root, -400)
    names = ["data", "train", "faults-cpu.jsonl", ".goldens.lock", "20260101T000000-cpu-no"]
    for name in names:
        (root / "runs" / name).mkdir()
    (root / "runs/20250101T000000-cpu-0123456789ab").symlink_to(plain)
    old, kept = choose(root / "runs", Retention(1, 30), NOW)
    assert [run.path for run in old] == [plain, sent]
    assert all(run.size >= 1000 for run in old)
    assert set(kept) == {latest, bench, unsent}
    assert "MLflow" in kept[unsent]
    assert len(list(delete(old))) == 2
    assert not plain.exists()
    assert all(path.exists() for path in (latest, bench, unsent, future))
    assert all((root / "runs" / name).exists() for name in names)


_HOLD = """\
import sys, time
from pathlib import Path
from validation.run_folder import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_run_that_is_in_use_stays_until_its_process_ends(root: Path) -> None:
    used = run_folder(root, 90)
    run_folder(root, 1)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, used],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        old, kept = choose(root / "runs", Retention(1, 30), NOW)
        assert old == []
        assert kept == {used: "in use"}
        assert list(delete([pruning.Old(used, 0)])) == []
    finally:
        process.kill()
        process.wait()
    assert gone(root) == [used]


def test_a_prune_that_was_killed_is_finished_by_the_next(root: Path) -> None:
    rest = root / "runs/.pruned-20200101T000000-cpu-0123456789ab"
    rest.mkdir(parents=True)
    (rest / "log.txt").write_text("x")
    delete_rests(root / "runs")
    assert not rest.exists()


def test_the_command_says_what_it_frees(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(timezone.utc)
    old, young = run_folder(root, 90, now=now), run_folder(root, 1, now=now)
    (root / "golden.toml").write_text('cases = ["my_cases"]\n[runs]\nkeep = 1\n')
    assert main(["prune", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{old.name}: would be deleted" in said
    assert "would free 0.0 MB of 1 run folder(s)" in said
    assert old.exists()
    assert main(["prune", "--days", "100"]) == 0
    assert old.exists()
    assert main(["prune"]) == 0
    assert f"{old.name}: deleted" in capsys.readouterr().out
    assert not old.exists()
    assert young.exists()
    assert main(["prune", "--keep", "0"]) == 2
    assert "--keep is a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["keep = 0"], "keep is a whole number from 1"),
        (["days = -1"], "days is a whole number from 0"),
        (["days = true"], "not True"),
        (["days = 99999999"], "to 36500"),
        (["weeks = 2"], "no key 'weeks'"),
    ],
)
def test_a_policy_that_is_none_is_refused(root: Path, lines: Sequence[str], said: str) -> None:
    (root / "golden.toml").write_text("\n".join(['cases = ["a"]', "[runs]", *lines]))
    with pytest.raises(CaseError, match=rf"golden\.toml: runs: .*{said}"):
        read_declaration(root)
