"""What an owner may accept, and what GitHub is told: of honest verdicts and of hostile ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import comment
import pytest
import yaml
from loosening import decide, read_all
from verdict_table import VerdictError, parse, render

CI = Path(comment.__file__).parent
WORKFLOWS = CI.parent / ".github" / "workflows"
SHA = "0123456789abcdef0123456789abcdef01234567"


def verdict(state: str, accepted: str | None = None, **more: str) -> dict[str, Any]:
    """A check's JSON; with `accepted`, of a change that loosens the gate."""
    content: dict[str, Any] = {
        "verdict": state,
        "lane": "cpu",
        "seconds": 1.0,
        "environment": {},
        "canary": None,
        "cases": [],
    }
    if accepted is not None:
        found = {"kind": "tolerance", "case": "tiny_moe", "text": "5 times wider", **more}
        content |= {"loosened": [found], "verdict_if_accepted": accepted}
    return content


def left(folder: Path, *verdicts: Any) -> Path:
    for number, content in enumerate(verdicts):
        path = folder / str(number) / "verdict.json"
        path.parent.mkdir(parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([verdict("PASS")], "none"),
        ([verdict("FAIL"), verdict("PASS")], "none"),
        ([verdict("FAIL", "PASS")], "acceptable"),
        ([verdict("PASS", "PASS")], "acceptable"),
        ([verdict("INVALID", "PASS"), verdict("PASS")], "acceptable"),
        ([verdict("FAIL", "FAIL")], "refused"),
        ([verdict("PASS", "INVALID")], "refused"),
        ([verdict("FAIL", "PASS"), verdict("FAIL")], "refused"),
        ([verdict("FAIL", "PASS"), verdict("UNFIT")], "refused"),
        ([verdict("FAIL", "PASS"), verdict("FAIL", "UNFIT")], "refused"),
    ],
)
def test_only_what_would_pass_can_be_accepted(
    tmp_path: Path, verdicts: list[Any], expected: str
) -> None:
    outputs = tmp_path / "outputs"
    done = subprocess.run(
        [sys.executable, CI / "loosening.py", left(tmp_path / "artifact", *verdicts)],
        env={**os.environ, "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        text=True,
        check=True,
    )
    decision, *reasons = done.stdout.splitlines()
    assert decision == expected
    assert outputs.read_text() == f"decision={expected}\n"
    assert reasons
    if expected != "none":
        assert "cpu: tolerance tiny_moe: 5 times wider" in reasons


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        verdict("FAIL", "GREAT"),
        verdict("FAIL", "PASS", kind="law"),
        verdict("FAIL", "PASS", case="<b>"),
        {**verdict("FAIL", "PASS"), "loosened": "all"},
        {**verdict("FAIL", "PASS"), "loosened": [{}]},
        {**verdict("FAIL", "PASS"), "loosened": verdict("FAIL", "PASS")["loosened"] * 201},
        {**verdict("FAIL"), "loosened": [{"kind": "quarantine", "case": "a", "text": ""}]},
    ],
)
def test_a_file_that_is_no_verdict_decides_nothing(tmp_path: Path, content: Any) -> None:
    folder = left(tmp_path / "artifact", verdict("FAIL", "PASS"), content)
    outputs = tmp_path / "outputs"
    done = subprocess.run(
        [sys.executable, CI / "loosening.py", folder],
        env={**os.environ, "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("loosening: ")
    assert not outputs.exists()


def test_no_verdict_and_a_link_decide_nothing(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match="no verdict"):
        read_all(tmp_path)
    left(tmp_path / "elsewhere", verdict("PASS"))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact/verdict.json").symlink_to(tmp_path / "elsewhere/0/verdict.json")
    with pytest.raises(VerdictError, match="not a regular file"):
        read_all(tmp_path / "artifact")


@pytest.mark.parametrize("hostile", ["a\n**PASS**", "</code>@everyone [x](http://y)", "`$(x)` |"])
def test_a_strangers_reason_stays_text(hostile: str) -> None:
    table = parse(verdict("FAIL", "PASS", text=hostile))
    (line,) = [line for line in render(table).splitlines() if "loosens the gate, t" in line]
    cell = line.split("<code>")[1].removesuffix("</code>")
    assert not set(cell) & set("<>|@`[]()*!")
    assert len(decide([table])[1]) == len("\n".join(decide([table])[1]).splitlines())


def test_the_comment_says_what_an_owner_does_and_where(tmp_path: Path) -> None:
    here = "https://example.org/runs/2"

    def body(name: str, *verdicts: Any) -> str:
        return comment.compose(
            left(tmp_path / name, *verdicts), SHA, "https://example.org/runs/1", here
        )

    asked = body("a", verdict("FAIL", "PASS"))
    assert "loosens the gate, tolerance tiny_moe: <code>5 times wider</code>" in asked
    assert f"approves the environment `loosen` of [this run]({here})" in asked
    assert SHA in asked
    for name, verdicts in {
        "b": [verdict("FAIL", "FAIL")],
        "c": [verdict("FAIL", "PASS"), verdict("FAIL")],
        "d": [verdict("FAIL")],
    }.items():
        assert here not in body(name, *verdicts)


_GH = f"""#!{sys.executable}
import json, subprocess, sys
from pathlib import Path
here, words = Path(__file__).parent, sys.argv[1:]
with (here / "calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")
if "--jq" in words:
    query = words[words.index("--jq") + 1]
    sys.exit(subprocess.run(["jq", "-r", query, here / "answer"]).returncode)
"""


def github(tmp_path: Path, script: str, *words: str, answer: Any = None) -> Any:
    """Runs a job script with a GitHub that answers so; returns (process, fields that it sent)."""
    (tmp_path / "gh").write_text(_GH)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "answer").write_text(json.dumps(answer))
    done = subprocess.run(
        ["bash", CI / "jobs" / script, *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REPOSITORY": "o/r"},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = tmp_path / "calls"
    sent = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return done, [word for call in sent for word in call]


@pytest.mark.parametrize(
    ("result", "decision", "owners", "state"),
    [
        ("success", "none", "", "success"),
        ("failure", "none", "", "failure"),
        ("cancelled", "none", "", "error"),
        ("success", "", "", "error"),
        ("failure", "", "", "failure"),
        ("failure", "acceptable", "ada", "success"),
        ("success", "acceptable", "ada grace", "success"),
        ("failure", "acceptable", "", "failure"),
        ("success", "acceptable", "", "failure"),
        ("failure", "acceptable", "-", "pending"),
        ("cancelled", "acceptable", "ada", "error"),
        ("", "acceptable", "ada", "error"),
        ("success", "refused", "ada", "failure"),
        ("failure", "refused", "ada", "failure"),
        ("success", "great", "ada", "error"),
    ],
)
def test_the_status_of_a_commit(
    tmp_path: Path, result: str, decision: str, owners: str, state: str
) -> None:
    done, sent = github(
        tmp_path, "status.sh", SHA, "cpu", result, "https://example.org/1", decision, owners
    )
    assert done.returncode == 0, done.stderr
    assert f"state={state}" in sent
    assert "context=golden/cpu" in sent
    (text,) = [word for word in sent if word.startswith("description=")]
    assert len(text) <= len("description=") + 140
    assert ("accepted by" in text) == (state == "success" and decision == "acceptable")


def test_a_status_without_a_decision_is_the_jobs_own(tmp_path: Path) -> None:
    done, sent = github(tmp_path, "status.sh", SHA, "h200", "success", "https://example.org/1")
    assert done.returncode == 0
    assert "state=success" in sent
    done, _ = github(tmp_path, "status.sh", "main", "h200", "success", "https://example.org/1")
    assert done.returncode == 2
    words = [SHA, "cpu", "failure", "https://example.org/1", "acceptable", "a; x=$(y)"]
    assert github(tmp_path, "status.sh", *words)[0].returncode == 2


def review(state: str, environment: str, login: str) -> dict[str, Any]:
    return {"state": state, "environments": [{"name": environment}], "user": {"login": login}}


@pytest.mark.skipif(not Path("/usr/bin/jq").exists(), reason="gh has jq built in; here it is apart")
@pytest.mark.parametrize(
    ("reviews", "owners"),
    [
        ([review("approved", "loosen", "ada")], "ada"),
        ([review("approved", "gpu", "ada"), review("approved", "loosen", "grace")], "grace"),
        ([review("approved", "gpu", "ada")], None),
        ([review("rejected", "loosen", "ada")], None),
        ([], None),
    ],
)
def test_an_environment_that_nobody_approved_accepts_nothing(
    tmp_path: Path, reviews: list[Any], owners: str | None
) -> None:
    done, sent = github(tmp_path, "approval.sh", "42", "loosen", answer=reviews)
    assert "repos/o/r/actions/runs/42/approvals" in sent
    assert done.returncode == (1 if owners is None else 0)
    assert done.stdout == ("" if owners is None else f"owners={owners}\n")


@pytest.mark.skipif(not Path("/usr/bin/jq").exists(), reason="gh has jq built in; here it is apart")
def test_how_a_job_ended(tmp_path: Path) -> None:
    jobs = [{"name": "test", "conclusion": "failure"}, {"name": "gate", "conclusion": "success"}]
    done, _ = github(tmp_path, "result.sh", "42", "gate", answer={"jobs": jobs})
    assert done.stdout == "result=success\n"
    done, _ = github(tmp_path, "result.sh", "42", "gate", answer={"jobs": jobs[:1]})
    assert done.stdout == "result=\n"
    assert github(tmp_path, "result.sh", "42; x", "gate")[0].returncode == 2


@pytest.mark.parametrize("stem", ["comment", "gpu"])
def test_the_workflows_ask_an_owner_before_the_status(stem: str) -> None:
    jobs = yaml.safe_load((WORKFLOWS / f"{stem}.yml").read_text())["jobs"]
    loosen, status = jobs["loosen"], jobs["status"]
    assert loosen["environment"] == "loosen"
    assert re.search(r"run \$\{\{ github\.\S*run\S* \}\} at \$\{\{ \S*sha \}\}", loosen["name"])
    assert "needs.verdict.outputs.decision == 'acceptable'" in loosen["if"]
    assert "approval.sh" in loosen["steps"][-1]["run"]
    assert "contents" in loosen["permissions"]
    assert "write" not in loosen["permissions"].values()
    assert {"verdict", "loosen"} <= set(status["needs"])
    (step,) = [step for step in status["steps"] if "run" in step]
    assert step["run"].endswith('"$DECISION" "$OWNERS"')
    assert step["env"]["OWNERS"] == "${{ needs.loosen.outputs.owners }}"
    # What decides is main's: no job but the GPU's own checks out another revision.
    for name in ("verdict", "loosen", "status"):
        for part in jobs[name]["steps"]:
            assert "ref" not in part.get("with", {})
