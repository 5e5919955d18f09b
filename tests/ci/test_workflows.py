"""Rules that every workflow keeps, whoever opens the pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
SCRIPTS = re.compile(r"(python3 )?(\.\./main/)?ci/[\w/]+\.(sh|py)( |$)")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Any:
    """A workflow; YAML 1.1 reads its `on` as true."""
    content = yaml.safe_load(request.param.read_text())
    return {"on" if key is True else key: value for key, value in content.items()}


def steps(workflow: Any) -> Iterator[Any]:
    """Each step of each job."""
    for job in workflow["jobs"].values():
        yield from job["steps"]


def strings(value: Any) -> Iterator[str]:
    """All text below a value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from strings(key)
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def test_there_are_workflows() -> None:
    stems = {path.stem for path in FILES}
    assert stems >= {"pre-merge", "comment", "gpu", "nightly", "golden-update"}


def test_permissions_are_given_to_jobs_alone(workflow: Any) -> None:
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert isinstance(job["permissions"], dict)
        assert job["timeout-minutes"] <= 300
    assert "group" in workflow["concurrency"]


def test_a_strangers_code_meets_no_secret_and_no_writing_token(workflow: Any) -> None:
    if "pull_request" not in workflow["on"]:
        return
    assert not any("secrets" in text for text in strings(workflow))
    for job in workflow["jobs"].values():
        assert set(job["permissions"].values()) <= {"read"}
        assert "self-hosted" not in str(job["runs-on"])
    assert "merge_group" in workflow["on"]


def test_privileged_triggers_never_check_out_the_head(workflow: Any) -> None:
    if not {"pull_request_target", "workflow_run"} & set(workflow["on"]):
        return
    for step in steps(workflow):
        if str(step.get("uses", "")).startswith("actions/checkout@"):
            assert "pull_request_target" not in workflow["on"]
            assert "ref" not in step["with"]
            assert "repository" not in step["with"]


def test_nothing_is_interpolated_into_a_shell(workflow: Any) -> None:
    for step in steps(workflow):
        assert "${{" not in step.get("run", "")
        assert "script" not in step.get("with", {})


def test_steps_call_a_script_that_is_here(workflow: Any) -> None:
    for step in steps(workflow):
        if "run" in step and not step["run"].startswith("gh workflow run"):
            assert SCRIPTS.match(step["run"]), step["run"]
            assert step["run"].count("\n") == 0
            path = re.search(r"ci/[\w/]+\.(sh|py)", step["run"])
            assert path is not None
            assert (REPOSITORY / path[0]).is_file()


def test_actions_are_pinned_and_leave_no_token_behind(workflow: Any) -> None:
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_no_job_takes_or_leaves_a_cache(workflow: Any) -> None:
    # Code of a branch that a workflow of main runs can write into main's caches.
    for step in steps(workflow):
        assert "cache" not in step.get("uses", "")
        assert not any("cache" in name for name in step.get("with", {}))


def test_gpu_jobs_take_an_approved_commit_id(workflow: Any) -> None:
    for job in workflow["jobs"].values():
        if "self-hosted" in str(job["runs-on"]):
            assert "environment" in job
            for step in job["steps"]:
                ref = step.get("with", {}).get("ref", "")
                assert "branch" not in ref
                assert "head_ref" not in ref


def test_a_gpu_is_told_the_commit_that_was_approved() -> None:
    gpu = yaml.safe_load((REPOSITORY / ".github/workflows/gpu.yml").read_text())
    gate = gpu["jobs"]["gate"]
    (run,) = [step for step in gate["steps"] if "run" in step]
    (head,) = [s for s in gate["steps"] if s.get("with", {}).get("path") == "head"]
    assert run["env"]["COMMIT"] == head["with"]["ref"] == "${{ inputs.sha }}"
    assert "${{ inputs.sha }}" in gpu["run-name"]


def test_every_lane_runs_at_night_and_the_trend_has_a_past() -> None:
    night = yaml.safe_load((REPOSITORY / ".github/workflows/nightly.yml").read_text())
    labels = [job["runs-on"] for job in night["jobs"].values()]
    lanes = {label[-1] for label in labels if isinstance(label, list)}
    assert lanes == {"h200", "h200-x2"}
    found = list(steps(night))
    (down,) = [s for s in found if "download-artifact" in s.get("uses", "")]
    (up,) = [s for s in found if s.get("with", {}).get("name") == "benches" and s is not down]
    assert down["with"]["name"] == "benches"
    # An artifact's root is what its paths have in common before their first wildcard.
    assert all(p.startswith(f"{down['with']['path']}/*/") for p in up["with"]["path"].split())
    (find,) = [s for s in found if "past.sh" in s.get("run", "")]
    assert find["run"].split()[1:] == ["nightly.yml", '"$BRANCH"', "benches"]


def test_comment_reads_the_workflow_that_makes_its_artifact() -> None:
    comment = yaml.safe_load((REPOSITORY / ".github/workflows/comment.yml").read_text())
    gate = yaml.safe_load((REPOSITORY / ".github/workflows/pre-merge.yml").read_text())
    assert comment[True]["workflow_run"]["workflows"] == [gate["name"]]
    names = {s["with"]["name"] for s in steps(gate) if "upload-artifact" in s.get("uses", "")}
    wanted = {s["with"]["name"] for s in steps(comment) if "download" in s.get("uses", "")}
    assert wanted <= names


def test_goldens_and_their_judges_have_owners() -> None:
    owned = (REPOSITORY / ".github/CODEOWNERS").read_text()
    for folder in ("/goldens/", "/validation/", "/ci/", "/.github/"):
        assert re.search(rf"^{folder} +@\S+", owned, re.MULTILINE)
