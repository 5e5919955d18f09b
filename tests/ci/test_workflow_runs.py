"""Every job of every workflow, run on this machine against a bare remote and a fake `gh`.

What GitHub itself does (tokens, environments, runners, caches, triggers) is not tried here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .actions import LocalActions
from .runner import STUB, VERDICT, Runner, answer, gh_calls, install_gh, recorded

WORKFLOWS = Path(__file__).resolve().parents[2] / ".github/workflows"
RUN = {
    "pre-merge": ["gate", "test", "harness", "docs"],
    "comment": ["comment", "verdict", "loosen", "status"],
    "gpu-label": ["start"],
    "gpu": ["gate", "verdict", "loosen", "status"],
    "nightly": ["past", "nightly", "chaos", "two-gpus"],
    "golden-update": ["commit", "record", "accept", "propose"],
    "release": ["build", "release"],
}
# What installs, builds or takes an hour leaves what the job uploads, and notes how it was called.
# A judge is the stub of `golden`.
_PYTHON = f"""#!/bin/bash
case "$1 $2" in
"-m pip") ;;
"-m tox")
    echo "$@" >>"$(dirname "$0")/tox-calls"
    mkdir -p build/site
    touch build/site/index.html
    ;;
"-m build") mkdir -p dist && touch "dist/$(basename "${{!#}}" | tr . v)-9.9.9-py3-none-any.whl" ;;
"-m benchmarks.chaos") echo "{{}}" >"${{!#}}" ;;
"-I -S")
    [ "$6" != validation.cli ] || exec "$(dirname "$0")/golden" "${{@:7}}"
    exec "{sys.executable}" "$@"
    ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""
# A `golden` that records a run and accepts it, as far as the jobs of an update need.
_UPDATE = """#!/bin/bash
case $1 in
check)
    mkdir -p runs/20260101T000000-cpu-0123456789ab/traces/tiny
    echo '{}' >runs/20260101T000000-cpu-0123456789ab/traces/tiny/trace.json
    cat "$(dirname "$0")/answer-check" | cut -d' ' -f2-
    exit 1
    ;;
update)
    test -e runs/20260101T000000-cpu-0123456789ab/traces/tiny/trace.json
    mkdir -p goldens/cpu/tiny_new && echo '{}' >goldens/cpu/tiny_new/golden.json
    printf '%s\\n' "$@"
    ;;
esac
"""


@pytest.fixture
def runner(stubbed: Runner) -> Runner:
    """A machine whose `golden`, `gh`, tox and build are stubs."""
    stubbed.project.git("switch", "-q", "-C", "main")
    (stubbed.project.root / "CHANGELOG.md").write_text("## [9.9.9]\n\n- news\n")
    stubbed.project.commit("news")
    stubbed.install("python3", _PYTHON)
    install_gh(stubbed)
    return stubbed


@pytest.fixture
def actions(runner: Runner, tmp_path: Path) -> LocalActions:
    """GitHub, as far as it is on this machine."""
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "clone", "-q", "--bare", runner.project.root, remote], check=True)
    environment = runner.project.environment(HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1")
    environment["PATH"] = f"{runner.tools}:/usr/bin:/bin"
    del environment["PYTHONPATH"]
    sha = runner.project.git("rev-parse", "HEAD").strip()
    github = {
        "repository": "o/r",
        "server_url": "https://github.com",
        "run_id": "77",
        "token": "token",
        "sha": sha,
        "ref_name": "main",
        "event": {},
    }
    return LocalActions(tmp_path / "actions", remote, environment, github)


def test_every_job_is_run_here() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in WORKFLOWS.glob("*.yml")}
    assert {name: list(content["jobs"]) for name, content in files.items()} == RUN


def statuses(runner: Runner) -> list[dict[str, str]]:
    """The statuses that were set, in order."""
    found = []
    for call in gh_calls(runner):
        if any("/statuses/" in word for word in call):
            pairs = (word.partition("=") for word in call if "=" in word)
            found.append({name: value for name, _, value in pairs})
    return found


def test_pre_merge_of_a_push(runner: Runner, actions: LocalActions) -> None:
    assert actions.run(WORKFLOWS / "pre-merge.yml", "gate").result == "failure"  # as the verdict
    assert json.loads((actions.artifact("verdict") / "verdict.json").read_text()) == VERDICT
    assert (actions.artifact("runs") / "reports/pre-merge/verdict.md").exists()
    assert "golden cpu: FAIL" in (actions.folder / "summary.md").read_text()
    assert actions.run(WORKFLOWS / "pre-merge.yml", "test").result == "success"
    harness = actions.run(WORKFLOWS / "pre-merge.yml", "harness", python="3.10", factor="310")
    assert harness.result == "success"
    assert actions.run(WORKFLOWS / "pre-merge.yml", "docs").result == "success"
    assert (actions.artifact("site") / "index.html").exists()
    assert (runner.tools / "tox-calls").read_text().splitlines() == [
        "-m tox run -e dev,lint",
        "-m tox run -e test",
        "-m tox run -e harness-py310",
        "-m tox -m docs",
    ]


def _of_a_pull_request(actions: LocalActions, *, loosened: bool) -> None:
    """Leaves what pre-merge's gate left, and the event that follows it."""
    verdict = dict(VERDICT)
    if loosened:
        found = {"kind": "tolerance", "case": "plain_seed", "text": "wider"}
        verdict |= {"loosened": [found], "verdict_if_accepted": "PASS"}
    folder = actions.artifact("verdict")
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps(verdict))
    actions.github["event"] = {
        "workflow_run": {
            "event": "pull_request",
            "id": "41",
            "head_sha": actions.github["sha"],
            "head_branch": "b",
            "head_repository": {"owner": {"login": "ada"}},
            "html_url": "https://github.com/o/r/actions/runs/41",
        }
    }


@pytest.mark.parametrize("approved", [None, "", "ada"])
def test_what_follows_pre_merge(
    runner: Runner, actions: LocalActions, approved: str | None
) -> None:
    _of_a_pull_request(actions, loosened=approved is not None)
    install_gh(runner, ("runs/41/jobs", "failure\n"), ("runs/77/approvals", f"{approved or ''}\n"))
    actions.run(WORKFLOWS / "comment.yml", "verdict", "loosen", "status")
    results = [actions.jobs[name].result for name in ("verdict", "loosen", "status")]
    (*before, last) = statuses(runner)
    assert last["context"] == "golden/cpu"
    if approved is None:
        assert results == ["success", "skipped", "success"]
        assert before == []
        assert (last["state"], last["target_url"]) == (
            "failure",
            "https://github.com/o/r/actions/runs/41",
        )
        return
    assert [status["state"] for status in before] == ["pending"]
    assert last["target_url"] == "https://github.com/o/r/actions/runs/77"
    if approved:
        assert results == ["success", "success", "success"]
        assert last["state"] == "success"
        assert "accepted by ada" in last["description"]
    else:
        assert results == ["success", "failure", "success"]
        assert last["state"] == "failure"


def test_the_comment_of_a_pull_request_that_is_gone(actions: LocalActions) -> None:
    _of_a_pull_request(actions, loosened=False)
    actions.environment = {**actions.environment, "GITHUB_API_URL": "http://127.0.0.1:9"}
    done = actions.run(WORKFLOWS / "comment.yml", "comment")
    assert done.result == "failure"
    assert "comment: " in done.log
    assert "Traceback" not in done.log
    actions.github["event"]["workflow_run"]["event"] = "push"
    assert actions.run(WORKFLOWS / "comment.yml", "comment").result == "skipped"


def test_the_label_starts_the_gpu_gate_of_its_commit(runner: Runner, actions: LocalActions) -> None:
    actions.github["event"] = {
        "label": {"name": "gpu"},
        "repository": {"default_branch": "main"},
        "pull_request": {"number": 7, "head": {"sha": "f" * 40}},
    }
    assert actions.run(WORKFLOWS / "gpu-label.yml").result == "success"
    (call,) = gh_calls(runner)
    assert call == ["workflow", "run", "gpu.yml", "--ref", "main", "--field", f"sha={'f' * 40}"]
    actions.github["event"]["label"]["name"] = "bug"
    assert actions.run(WORKFLOWS / "gpu-label.yml").result == "skipped"


def test_the_gpu_gate(runner: Runner, actions: LocalActions) -> None:
    answer(runner, "check", 0, {**VERDICT, "verdict": "PASS", "lane": "h200"})
    actions.contexts["inputs"] = {"sha": actions.github["sha"], "lane": "h200"}
    actions.run(WORKFLOWS / "gpu.yml")
    results = {name: job.result for name, job in actions.jobs.items()}
    assert results == {
        "gate": "success",
        "verdict": "success",
        "loosen": "skipped",
        "status": "success",
    }, actions.jobs["gate"].log
    (call,) = recorded(runner)
    assert call[call.index("--judge") + 1] == actions.github["sha"]
    (status,) = statuses(runner)
    assert (status["state"], status["context"]) == ("success", "golden/h200")
    actions.contexts["inputs"]["sha"] = "main"
    actions.run(WORKFLOWS / "gpu.yml")
    assert actions.jobs["gate"].result == "failure"
    assert "not the id of the commit" in actions.jobs["gate"].log


def test_a_night(runner: Runner, actions: LocalActions) -> None:
    for command in ("check", "faults", "bench", "publish"):
        answer(runner, command, 0, {**VERDICT, "verdict": "PASS", "lane": "h200", "cases": []})
    run = "runs/20260101T000000-h200-0123456789ab"
    runner.install(
        "golden",
        STUB.replace(
            "answer = here",
            f"Path('{run}').mkdir(parents=True, exist_ok=True)\n"
            f"(Path('{run}') / 'bench.json').write_text('{{}}')\nanswer = here",
            1,
        ),
    )
    install_gh(runner, ("nightly.yml/runs", "30\n"), ("runs/30/artifacts", "1\n"))
    past = actions.artifact("benches") / "20251231T000000-h200-0123456789ab"
    past.mkdir(parents=True)
    (past / "bench.json").write_text("{}")
    actions.run(WORKFLOWS / "nightly.yml")
    assert actions.jobs["past"].outputs == {"run": "30"}
    assert actions.jobs["nightly"].result == "success", actions.jobs["nightly"].log
    assert actions.jobs["two-gpus"].result == "success", actions.jobs["two-gpus"].log
    assert actions.jobs["chaos"].result == "success", actions.jobs["chaos"].log
    kept = {path.parent.name for path in actions.artifact("benches").rglob("bench.json")}
    assert kept == {past.name, Path(run).name}
    assert (actions.artifact("night") / "reports/nightly/trend.json").exists()
    assert (actions.artifact("night-two-gpus") / "reports/h200-x2/verdict.json").exists()


def test_an_update_of_goldens(runner: Runner, actions: LocalActions) -> None:
    runner.install("golden", _UPDATE)
    actions.contexts["inputs"] = {
        "branch": "main",
        "lanes": '["cpu"]',
        "cases": "",
        "reason": "a $(touch pwned) reason",
        "expect": "",
    }
    workflow = WORKFLOWS / "golden-update.yml"
    assert actions.run(workflow, "commit").outputs == {"sha": actions.github["sha"]}
    for done in (
        actions.run(workflow, "record", lane="cpu"),
        actions.run(workflow, "accept"),
        actions.run(workflow, "propose"),
    ):
        assert done.result == "success", done.log
    git = ["git", "-C", actions.remote]
    changed = [*git, "diff", "--name-only", "main", "goldens/77"]
    assert subprocess.check_output(changed, text=True) == "goldens/cpu/tiny_new/golden.json\n"
    created = next(call for call in gh_calls(runner) if call[:2] == ["pr", "create"])
    assert created[created.index("--base") + 1] == "main"
    assert not list(actions.folder.rglob("pwned"))
    # The artifact of a job that ran the branch's code holds more than it should.
    (actions.artifact("update") / "ci/jobs").mkdir(parents=True)
    (actions.artifact("update") / "ci/jobs/common.sh").write_text("touch pwned\n")
    assert actions.run(workflow, "propose").result == "success"
    assert not list(actions.folder.rglob("pwned"))


def test_a_release(runner: Runner, actions: LocalActions) -> None:
    actions.github["ref_name"] = "v9.9.9"
    actions.run(WORKFLOWS / "release.yml")
    assert [job.result for job in actions.jobs.values()] == ["success", "success"], actions.jobs
    (call,) = gh_calls(runner)
    assert call[:3] == ["release", "create", "v9.9.9"]
    wheels = sorted(word for word in call if word.endswith(".whl"))
    assert wheels == ["dist/v-9.9.9-py3-none-any.whl", "dist/validation-9.9.9-py3-none-any.whl"]
