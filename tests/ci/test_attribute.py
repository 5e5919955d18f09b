"""Attribution: every outcome of the cells, and one failure followed to its cause."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attribute
import pytest
from attribute import NEW_NEW, NEW_OLD, OLD_NEW, OLD_OLD, Cause, Question, decide

from validation.gate.bisect import State

CI = Path(__file__).resolve().parents[2] / "ci"
QUESTION = Question(case="tiny_moe", lane="cpu", good="v1", bad="HEAD")
GOOD, BAD, BROKEN = State.GOOD, State.BAD, State.BROKEN


def cause(
    new_new: State | None,
    old_new: State | None = None,
    new_old: State | None = None,
    old_old: State | None = None,
) -> Cause:
    """What is decided of these cells."""
    states = {NEW_NEW: new_new, OLD_NEW: old_new, NEW_OLD: new_old, OLD_OLD: old_old}
    return decide(states, QUESTION).cause


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # the failing cell, old code in the new environment, new code in the old one, both old
        ((GOOD,), Cause.FLAKE),
        ((GOOD, BAD, BAD, BAD), Cause.FLAKE),
        ((None, GOOD, BAD, GOOD), Cause.UNDECIDED),
        ((BAD, GOOD, BAD, GOOD), Cause.CODE),
        ((BAD, GOOD, BAD, None), Cause.CODE),
        ((BAD, GOOD, None, None), Cause.CODE),
        ((BAD, GOOD, BROKEN, GOOD), Cause.CODE),
        ((BAD, BAD, GOOD, GOOD), Cause.ENVIRONMENT),
        ((BAD, None, GOOD, GOOD), Cause.ENVIRONMENT),
        ((BAD, BROKEN, GOOD, GOOD), Cause.ENVIRONMENT),
        ((BAD, GOOD, GOOD, GOOD), Cause.BOTH),
        ((BAD, BAD, BAD, GOOD), Cause.BOTH),
        ((BAD, BAD, BAD, None), Cause.BOTH),
        ((BAD, BAD, BAD, BAD), Cause.UNDECIDED),
        ((BAD, GOOD, BAD, BAD), Cause.UNDECIDED),
        ((BAD, BAD, None, None), Cause.UNDECIDED),
        ((BAD, None, BAD, GOOD), Cause.UNDECIDED),
        ((BAD, None, None, GOOD), Cause.UNDECIDED),
        ((BAD, BROKEN, BROKEN, GOOD), Cause.UNDECIDED),
        ((BROKEN, GOOD, BROKEN, GOOD), Cause.CODE),
        ((BROKEN, BROKEN, GOOD, GOOD), Cause.ENVIRONMENT),
        ((BROKEN, BROKEN, BROKEN, GOOD), Cause.BOTH),
    ],
)
def test_each_outcome(cells: tuple[State | None, ...], expected: Cause) -> None:
    assert cause(*cells) is expected


def test_every_combination_says_what_to_run_next() -> None:
    for cells in itertools.product((GOOD, BAD, BROKEN, None), repeat=4):
        states = dict(zip((NEW_NEW, OLD_NEW, NEW_OLD, OLD_OLD), cells, strict=True))
        finding = decide(states, QUESTION)
        assert finding.why
        assert "golden " in finding.next or finding.cause is Cause.UNDECIDED
        assert not finding.next.endswith("with "), cells
        if finding.cause is Cause.UNDECIDED:
            assert "--" in finding.next or "builds" in finding.next


def test_what_to_run_next_can_be_pasted() -> None:
    assert decide({NEW_NEW: BAD, OLD_NEW: GOOD}, QUESTION).next == (
        "golden bisect v1 HEAD tiny_moe --lane cpu"
    )
    assert (
        "golden rebase tiny_moe --lane cpu --env"
        in decide({NEW_NEW: BAD, OLD_NEW: BAD, NEW_OLD: GOOD}, QUESTION).next
    )
    assert "--old-python" in decide({NEW_NEW: BAD, OLD_NEW: BAD}, QUESTION).next


def run(project: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a project, whose own folder is on the path, as in a job."""
    extra = [os.environ["EXTRA_PATH"]] if "EXTRA_PATH" in os.environ else []
    path = os.pathsep.join([str(project.root), project.environment()["PYTHONPATH"], *extra])
    return subprocess.run(
        [sys.executable, str(CI / "attribute.py"), *words],
        cwd=project.root,
        env=project.environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def attributed(project: Any, *words: str) -> Any:
    """The JSON of the command."""
    done = run(project, *words, "--json", "reports/why.json")
    assert done.returncode == 0, done.stderr
    return json.loads((project.root / "reports" / "why.json").read_text())


def old_environment(folder: Path) -> Path:
    """An environment like this one, in which the training loop can tell that it is another."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nOLD_ENVIRONMENT=1 exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.mark.skipif("VPMOE_RUN_SLOW" not in os.environ, reason="two minutes: VPMOE_RUN_SLOW=1")
def test_a_failure_is_followed_to_the_code_or_to_the_environment(
    golden_project: Any, tmp_path: Path
) -> None:
    project, old = golden_project, str(old_environment(tmp_path / "old"))
    words = ["plain_seed", "--lane", "cpu", "--good", "HEAD~1", "--old-python", old]
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    bug = project.commit("a bug")
    found = attributed(project, *words)
    assert found["verdict"] == "CODE"
    assert found["next"] == "golden bisect HEAD~1 HEAD plain_seed --lane cpu"
    assert len(found["cells"]) == 4

    # The same numbers as before the bug, but for a library that is another in the new environment.
    project.git("reset", "-q", "--hard", f"{bug}~1")
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "sitecustomize.py").write_text(
        "import os\n"
        "if 'OLD_ENVIRONMENT' not in os.environ:\n"
        "    import torch\n"
        "    adam = torch.optim.Adam.__init__\n"
        "    def other(self, params, lr):\n"
        "        adam(self, params, lr=1.5 * lr)\n"
        "    torch.optim.Adam.__init__ = other\n"
    )
    (project.root / "notes.txt").write_text("harmless\n")
    project.commit("notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXTRA_PATH", str(changed))
        found = attributed(project, *words)
    assert found["verdict"] == "ENVIRONMENT"
    assert "golden rebase plain_seed" in found["next"]
    assert project.git("worktree", "list").count("\n") == 1

    found = attributed(project, *words[:-2])
    assert found["verdict"] == "FLAKE"
    assert [cell["state"] for cell in found["cells"]] == ["good"]


def test_wrong_words_are_refused(golden_project: Any) -> None:
    for words, complaint in (
        (["no_such", "--lane", "cpu", "--good", "HEAD"], "no_such"),
        (["plain_seed", "--lane", "cpu", "--good", "gone"], "gone"),
        (
            ["plain_seed", "--lane", "cpu", "--good", "HEAD", "--old-python", os.devnull],
            "no Python environment",
        ),
    ):
        done = run(golden_project, *words)
        assert done.returncode == 2
        assert complaint in done.stderr
    assert attribute.interpreter(Path(sys.prefix))
