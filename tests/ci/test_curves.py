"""Pictures of curves, old against new: of goldens in git, and of numbers that anybody wrote."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import comment
import curves
import pytest
from curves import MAX_PICTURES, Curve, choose, read, render
from verdict_table import VerdictError

SCRIPT = Path(curves.__file__)
SHA = "0123456789abcdef0123456789abcdef01234567"
RUN = "https://example.org/runs/1"
# What Mermaid's grammar takes for a number: no exponent.
NUMBER = r"-?\d+\.\d+"


def series(*values: float) -> dict[int, float]:
    return dict(enumerate(values, start=1))


def write(folder: Path, name: str, **values: dict[int, Any]) -> None:
    """A golden's curves, as the harness writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "golden.json").write_text(json.dumps(str(values)))
    written = {
        metric: {"phase": "forward", "steps": list(s), "values": list(s.values())}
        for metric, s in values.items()
    }
    (folder / name).write_text(json.dumps({"schema": 1, "curves": written}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two goldens, committed: one with a digest in its file's name, as it once was."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    goldens = tmp_path / "goldens" / "cpu"
    old = {"lm_loss": series(3.0, 2.0, 1.5), "rate": series(1e-5, 2e-5, 3e-5)}
    write(goldens / "moved", "curves.0123456789ab.json", **old)
    write(goldens / "same", "curves.json", **old)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "goldens")
    (goldens / "moved" / "curves.0123456789ab.json").unlink()
    new = {"lm_loss": series(3.0, 2.5, 1.0), "rate": series(1e-5, 2e-5, 4e-5)}
    write(goldens / "moved", "curves.json", **new, bad=series(1.0, 2.0), odd={1: "nan"})
    return tmp_path


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", root, *identity, *words], check=True)


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_goldens_that_changed_are_drawn_and_others_are_not(repository: Path) -> None:
    path = repository / "numbers.json"
    done = run(repository, "HEAD", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "cpu/moved" in done.stdout
    assert "cpu/same" not in done.stdout
    assert "at most 0.333, at step 3" in done.stdout
    assert "  line [3.000000, 2.000000, 1.500000]\n  line [3.000000, 2.500000, 1.000000]" in (
        done.stdout
    )
    assert '  y-axis "x 1e-6" ' in done.stdout
    assert "2 more curve(s)" in done.stdout
    assert render(read(path)) == done.stdout.rstrip("\n")
    # Names alone are no change.
    git(repository, "checkout", "-q", "HEAD", "--", "goldens")
    folder = repository / "goldens/cpu/moved"
    (folder / "curves.0123456789ab.json").rename(folder / "curves.json")
    done = run(repository, "HEAD")
    assert (done.returncode, done.stdout) == (0, "")
    done = run(repository, "no-such-revision")
    assert done.returncode == 2
    assert "no-such-revision" in done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (series(1e-30, 2e-30), series(1e-30, 3e-30)),
        (series(1e300, 2e300), series(1e300, -3e300)),
        (series(0.0, 0.0), series(0.0, 5e-324)),
        (series(1e5, 1e5), series(1e5, 1e5 + 1e-9)),
        (series(5.0, 5.0, 5.0), series(5.0, 5.0, math.nan)),
        ({1: 1.0, 2: 2.0, 10: 3.0}, {1: 1.0, 2: 2.5, 10: 3.0, 11: 4.0}),
        ({n: float(n) for n in range(5000)}, {n: n + 0.5 for n in range(5000)}),
        (series(5e-324, 1.0), series(1.7e308, math.inf)),
    ],
)
def test_every_picture_is_one_that_mermaid_takes(
    old: dict[int, float], new: dict[int, float]
) -> None:
    text = render(choose([Curve("cpu/tiny", "lm_loss", old, new)]))
    for block in re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL):
        _, kind, title, x, y, *lines = block.splitlines()
        assert kind == "xychart-beta"
        assert title == '  title "lm_loss"'
        assert re.fullmatch(r'  x-axis "step" (\d+ --> \d+|\[\d+(, \d+)*\])', x)
        assert re.fullmatch(rf'  y-axis ("x 1e-?\d+" )?{NUMBER} --> {NUMBER}', y)
        low, high = map(float, re.findall(NUMBER, y))
        assert low < high
        numbers = [re.findall(NUMBER, line) for line in lines]
        assert len(numbers[0]) == len(numbers[1]) <= curves.MAX_POINTS + 1
        assert all(re.fullmatch(rf"  line \[{NUMBER}(, {NUMBER})*\]", line) for line in lines)


def test_many_goldens_share_the_pictures() -> None:
    found = choose(
        [
            Curve(f"cpu/case{n}", metric, series(1.0, 2.0), series(1.0, 3.0))
            for n in range(20)
            for metric in ("another", "grad_norm", "lm_loss")
        ]
    )
    assert sum(len(changed.drawn) for changed in found) == MAX_PICTURES
    assert {changed.drawn[0].metric for changed in found if changed.drawn} == {"lm_loss"}
    assert sum(len(changed.drawn) + changed.more for changed in found) == 60


def numbers(**changes: Any) -> dict[str, Any]:
    """What `--json` writes of one golden."""
    curve = {
        "metric": "lm_loss",
        "old": [[1, 1.0], [2, 2.0]],
        "new": [[1, 1.5], [2, 1.25], [3, "nan"]],
    }
    entry = {"golden": "cpu/tiny", "more": 3, "curves": [curve]}
    for name, value in changes.items():
        (curve if name in curve else entry)[name] = value
    return {"goldens": [entry]}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"goldens": [1]},
        {"goldens": [numbers()["goldens"][0]] * 13},
        numbers(golden='x"] ```\n<script>'),
        numbers(golden="../../etc`"),
        numbers(metric="@everyone"),
        numbers(metric=["lm_loss"]),
        numbers(more=-1),
        numbers(more=True),
        numbers(old=[[1, "1); DROP"], [2, 1]]),
        numbers(old=[[True, 1], [2, 1]]),
        numbers(old=[[1, 1, 1], [2, 1]]),
        numbers(old=[[-1, 1], [2, 1]]),
        numbers(old=[[1, 10**400], [2, 1]]),
        numbers(old=[[1, 1.0]]),
        numbers(curves=[{}]),
        numbers(curves=[numbers()["goldens"][0]["curves"][0]] * 4),
    ],
)
def test_what_is_no_list_of_curves_is_refused(tmp_path: Path, data: Any) -> None:
    path = tmp_path / curves.FILE
    path.write_text(json.dumps(data))
    with pytest.raises(VerdictError, match=r"^golden_curves\.json"):
        read(path)


def test_the_comment_shows_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "pre-merge").mkdir()
    (tmp_path / "pre-merge" / curves.FILE).write_text(json.dumps(numbers()))
    body = comment.compose(tmp_path, SHA, RUN)
    assert body.count("```mermaid") == 1
    assert "3 more curve(s)" in body
    (tmp_path / "pre-merge" / curves.FILE).write_text('{"goldens": []}')
    assert "mermaid" not in comment.compose(tmp_path, SHA, RUN)
