"""The job scripts, run as a runner runs them, on a small project of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .runner import CI, STUB, VERDICT, Runner, answer, make_runner, recorded


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_pre_merge_in_a_fresh_clone_says_what_golden_check_says(
    golden_project: Any, project_type: Any, tmp_path: Path, verdict: str
) -> None:
    origin, root = golden_project, tmp_path / "clone"
    if verdict == "FAIL":
        origin.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
        origin.commit("sharper attention")
    subprocess.run(["git", "clone", "-q", origin.root, root], check=True)
    runner = make_runner(project_type(root), tmp_path / "tools")
    (root / ".git/info/exclude").write_text("reports/\n")
    job = runner.run("pre_merge.sh")
    assert job.code == ["PASS", "FAIL"].index(verdict), job.err
    of_job = runner.verdict("reports/pre-merge")
    direct = runner.project.golden("check", "--lane", "cpu", "--json").json()
    for document in (of_job, direct):
        for part in (document, *document["cases"]):
            del part["seconds"]
    assert of_job == direct
    assert of_job["verdict"] == verdict
    divergences = [case["first_divergence"] for case in of_job["cases"]]
    assert all(d is None for d in divergences) == (verdict == "PASS")
    files = {path.name for path in (runner.project.root / "reports/pre-merge").iterdir()}
    assert files == {"verdict.json", "verdict.md", "report.html", "junit.xml"}
    assert f"golden cpu: {verdict}" in job.out


def _from_file(test: str, name: str) -> Callable[[Any], None]:
    path = CI.parent / f"tests/validation/upkeep/{test}.py"
    spec = importlib.util.spec_from_file_location(f"ways_of_{test}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)  # type: ignore[no-any-return]


def _disarmed(name: str) -> Callable[[Any], None]:
    """A way of `test_red.py` to plant a bug, or to disarm a change's own copy of the gate."""
    return _from_file("test_red", name)


def _choose_another_case(project: Any) -> None:
    """The change's own copy of the gate never runs the case that would see it."""
    project.edit('    print("\\n".join(chosen))', '    print("plain_seed")', "ci/select_cases.py")


@pytest.mark.parametrize(
    ("disarm", "code"),
    [
        (_disarmed("widen_the_tolerance"), 3),
        (_disarmed("invert_the_comparator"), 1),
        (_disarmed("delete_the_case"), 3),
        (_disarmed("delete_the_case_and_its_golden"), 3),
        (_choose_another_case, 1),
        (None, 0),
    ],
)
def test_a_pull_request_that_disarms_the_gate_stays_red(
    golden_project: Any, tmp_path: Path, disarm: Callable[[Any], None] | None, code: int
) -> None:
    runner = make_runner(golden_project, tmp_path / "tools")
    project = runner.project
    for folder in ("ci", "validation"):
        shutil.copytree(
            CI.parent / folder, project.root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    base = project.commit("the gate")
    if disarm is not None:
        _disarmed("plant")(project)
        disarm(project)
        project.commit("a harmless refactor")
    job = runner.run("pre_merge.sh", base)
    assert job.code == code, job.out + job.err
    assert (
        runner.verdict("reports/pre-merge")["verdict"] == {0: "PASS", 1: "FAIL", 3: "INVALID"}[code]
    )


def _exploit(name: str) -> Callable[[Any], None]:
    """An attack of `test_exploits.py`."""
    return _from_file("test_exploits", name)


@pytest.mark.parametrize(
    "attack", ["blinding", "shadowing", "replacing_the_harness", "replaying", "rewriting_goldens"]
)
def test_a_pull_request_that_attacks_the_judge_stays_red(
    golden_project: Any, tmp_path: Path, attack: str
) -> None:
    runner = make_runner(golden_project, tmp_path / "tools")
    project = runner.project
    project.edit("= 32, 48, 16, 4, 6", "= 32, 48, 16, 4, 7")
    _exploit(attack)(project)
    project.commit("a harmless refactor")
    job = runner.run("pre_merge.sh", "HEAD~1")
    assert job.code in (1, 3), job.out + job.err
    assert runner.verdict("reports/pre-merge")["verdict"] in ("FAIL", "INVALID")


def test_every_case_is_checked_without_a_base(stubbed: Runner) -> None:
    job = stubbed.run("pre_merge.sh")
    assert job.code == 1, job.err
    (call,) = recorded(stubbed)
    assert call[:4] == ["check", "--lane", "cpu", "--json"]
    assert not {"--judge", "tiny_moe"} & set(call)
    assert call[-1] == f"GATE={stubbed.project.root}"


def test_the_bases_gate_judges_what_a_change_can_move(stubbed: Runner) -> None:
    stubbed.project.edit("grape", "grape ", "docs/model.md")
    stubbed.project.edit("def ", "def  ", "vpmoe/cases/printed.py")
    stubbed.project.commit("a law")
    job = stubbed.run("pre_merge.sh", "HEAD~1", "reports/here")
    assert job.code == 1, job.err
    (call,) = recorded(stubbed)
    base = stubbed.project.git("rev-parse", "HEAD~1").strip()
    assert "printed" in call
    assert "tiny_moe" not in call
    assert call[-3:-1] == ["--judge", base]
    assert stubbed.verdict("reports/here") == VERDICT
    assert "1 of 10 records differ" in job.out


def test_new_cases_are_checked_by_their_own_goldens(stubbed: Runner) -> None:
    stubbed.project.edit('"tiny_dense",\n', '"tiny_other",\n', "vpmoe/cases/__init__.py")
    stubbed.project.commit("another case")
    job = stubbed.run("pre_merge.sh", "HEAD~1")
    assert job.code == 1, job.err
    judged, own = recorded(stubbed)
    assert "--judge" in judged
    assert "tiny_other" not in judged
    assert own[-2:] == ["tiny_other", f"GATE={stubbed.project.root}"]


def test_a_base_that_does_not_exist_is_refused(stubbed: Runner) -> None:
    job = stubbed.run("pre_merge.sh", "no-such-revision")
    assert job.code == 2
    assert "no-such-revision" in job.err
    assert recorded(stubbed) == []


def test_gpu_minutes_are_left_beside_the_verdict(stubbed: Runner) -> None:
    answer(stubbed, "check", 0, {**VERDICT, "lane": "h200-x2", "verdict": "PASS"})
    job = stubbed.run("gpu.sh", "h200-x2")
    assert job.code == 0, job.err
    (call,) = recorded(stubbed)
    assert "--no-skips" in call  # of a check of main that no base judges
    kept = json.loads((stubbed.project.root / "reports/h200-x2/gpu-minutes.json").read_text())
    assert kept["total"] == pytest.approx(3.0 * 2 / 60)
    assert "h200-x2/plain_seed" in job.out


def test_a_gpu_runs_the_approved_commit_alone(stubbed: Runner) -> None:
    answer(stubbed, "check", 0, {**VERDICT, "lane": "h200", "verdict": "PASS"})
    head = stubbed.project.git("rev-parse", "HEAD").strip()
    parent = stubbed.project.git("rev-parse", "HEAD~1").strip()
    for wrong in (parent, head[:12], "main", "HEAD"):
        job = stubbed.run("gpu.sh", "h200", COMMIT=wrong)
        assert job.code == 2
        assert "not the id of the commit" in job.err
    assert recorded(stubbed) == []
    assert stubbed.run("gpu.sh", "h200", COMMIT=head).code == 0


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        *(("0 4", 4), ("4 1", 1), ("1 3 0", 3), ("3 2", 2), ("4 5", 5), ("5 1", 1)),
        *(("0 137 2", 137), ("", 3), ("0 0", 0)),
    ],
)
def test_the_worst_exit_code_is_goldens_worst(codes: str, expected: int) -> None:
    words = f"source {CI}/jobs/common.sh; worst {codes}"
    done = subprocess.run(["bash", "-c", words], cwd=CI, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected


def test_the_night_does_every_step_and_ends_with_the_worst(stubbed: Runner) -> None:
    answer(stubbed, "check", 1, {**VERDICT, "lane": "h200"})
    answer(stubbed, "faults", 0, {"faults": []})
    answer(stubbed, "bench", 4, {"verdict": "UNFIT"})
    answer(stubbed, "publish", 2, {})
    project = stubbed.project
    project.git("tag", "v9.9.9", "HEAD~1")
    job = stubbed.run("nightly.sh", "h200", NIGHT_BASE="HEAD~1")
    assert job.code == 1, job.err
    words = [call[:-1] for call in recorded(stubbed)]
    lane = ["--lane", "h200"]
    assert words[0][-1] == "--no-skips"
    assert [w for w in words if w[0] != "check"] == [
        ["faults", *lane, "--json"],
        ["bench", *lane, "--base", "v9.9.9", "--json"],
        ["bench", *lane, "--base", "HEAD~1", "--json"],
        ["bench", *lane, "--trend", "--json", "--report", "reports/nightly"],
        ["publish"],
    ]
    files = {path.name for path in (project.root / "reports/nightly").iterdir()}
    assert files >= {
        "verdict.json",
        "verdict.md",
        "faults.json",
        "bench-release.json",
        "bench-night.json",
        "trend.json",
        "gpu-minutes.json",
    }
    minutes = json.loads((project.root / "reports/nightly/gpu-minutes.json").read_text())
    steps = [row["case"] for row in minutes["cases"] if row["case"].startswith("(")]
    assert set(steps) == {
        "(outside cases)",
        "(faults)",
        "(bench against the last release)",
        "(bench against the previous night)",
        "(trend)",
        "(attribution)",
    }
    assert "h200/(faults)" in job.out
    # The case of the stub's verdict is no case of this repository.
    assert "plain_seed: not attributed" in job.err


def test_the_night_after_the_first_commit_has_nothing_to_bench_against(stubbed: Runner) -> None:
    for command in ("check", "faults", "bench"):
        answer(stubbed, command, 0, {**VERDICT, "verdict": "PASS", "lane": "h200", "cases": []})
    job = stubbed.run("nightly.sh", "h200", NIGHT_BASE="HEAD", RELEASE_BASE="")
    assert job.code == 0, job.err


_GH = f"""#!{sys.executable}
import json, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with (here / "gh-calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")
place = next(word for word in words if word.startswith("repos/"))
answers = json.loads((here / "gh-answers").read_text())
print(answers[place.removeprefix("repos/o/r/actions/")])
"""


@pytest.mark.parametrize(
    ("left", "found"), [({"31": 0, "30": 1, "29": 1}, "30"), ({"31": 0}, ""), ({}, "")]
)
def test_the_latest_night_that_left_its_benchmarks(
    stubbed: Runner, left: dict[str, int], found: str
) -> None:
    answers = {"workflows/nightly.yml/runs": "\n".join(left)}
    answers |= {f"runs/{run}/artifacts": str(count) for run, count in left.items()}
    stubbed.install("gh", _GH)
    (stubbed.tools / "gh-answers").write_text(json.dumps(answers))
    outputs = stubbed.tools / "outputs"
    job = stubbed.run(
        "past.sh",
        "nightly.yml",
        "main",
        "benches",
        GITHUB_REPOSITORY="o/r",
        GITHUB_OUTPUT=str(outputs),
    )
    assert job.code == 0, job.err
    assert job.out == outputs.read_text() == f"run={found}\n"
    first, *rest = map(json.loads, (stubbed.tools / "gh-calls").read_text().splitlines())
    assert {"branch=main", "status=completed"} <= set(first)
    assert all("name=benches" in words for words in rest)
    assert stubbed.run("past.sh", "nightly.yml").code == 2


def test_runs_of_elsewhere_are_accepted_into_a_patch_that_is_proposed(
    golden_project: Any, tmp_path: Path
) -> None:
    runner = make_runner(golden_project.copy(tmp_path / "clone"), tmp_path / "tools")
    project = runner.project
    (project.root / ".git/info/exclude").write_text("reports/\n")
    project.edit("lr=3e-3", "lr=4e-3")
    commit = project.commit("a higher rate")
    recording = runner.run("update.sh", "record", "cpu", CASES="plain_seed")
    assert recording.code == 0, recording.err
    assert "golden cpu: FAIL" in recording.out
    reason = "a higher rate; $(touch pwned) `x`"
    recorded_run = project.latest_run()
    shutil.move(recorded_run, tmp_path / "run")
    shutil.rmtree(project.root / "runs")  # a fresh machine has the artifacts alone
    shutil.move(tmp_path / "run", recorded_run)
    refused = runner.run("update.sh", "accept", CASES="plain_seed", REASON=reason)
    assert refused.code == 2
    assert "movement that was not declared" in refused.err
    accepted = runner.run(
        "update.sh", "accept", CASES="plain_seed", REASON=reason, EXPECT="plain_seed:*:any"
    )
    assert accepted.code == 0, accepted.err
    assert "goldens/cpu/plain_seed" in (project.root / "reports/update/goldens.patch").read_text()

    origin = tmp_path / "origin.git"
    subprocess.run(["git", "clone", "-q", "--bare", project.root, origin], check=True)
    project.git("reset", "-q", "--hard", commit)
    project.git("clean", "-fdq")
    project.git("remote", "add", "origin", str(origin))
    runner.install("gh", '#!/bin/sh\nprintf "%s\\n" "$@" >>"$(dirname "$0")/gh-calls"\n')
    words = {"BASE_BRANCH": "main", "NEW_BRANCH": "goldens/1", "REASON": reason}
    proposed = runner.run("update.sh", "propose", **words)
    assert proposed.code == 0, proposed.err
    changed = project.git("diff", "--name-only", "main", "goldens/1").split()
    assert changed
    assert all(name.startswith("goldens/") for name in changed)
    assert project.git("ls-remote", "origin", "goldens/1")
    calls = (runner.tools / "gh-calls").read_text()
    assert f"Accept goldens: {reason}" in calls
    body = (project.root / "reports/update/body.md").read_text()
    assert "lm_loss" in body
    assert "```mermaid" in body.split("### Curves of the changed goldens")[1]
    assert not (project.root / "pwned").exists()


def test_a_patch_that_reaches_outside_the_goldens_is_not_proposed(stubbed: Runner) -> None:
    project = stubbed.project
    project.edit("Apache", "apache", "README.md")
    folder = project.root / "reports/update"
    folder.mkdir(parents=True)
    (folder / "goldens.patch").write_text(project.git("diff"))
    project.git("checkout", "-q", "README.md")
    words = {"BASE_BRANCH": "main", "NEW_BRANCH": "goldens/1", "REASON": "x"}
    job = stubbed.run("update.sh", "propose", **words)
    assert job.code == 2
    assert "outside goldens/: README.md" in job.err


def test_slurm_starts_one_torchrun_on_each_node(stubbed: Runner) -> None:
    stubbed.install("scontrol", "#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    stubbed.install(
        "srun", f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
    )
    job = {
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    script, flags = "../slurm/train.sbatch", ["--train-iters", "3", "--title", "two words"]
    done = stubbed.run(script, "configs/vpmoe-6b.toml", "data dir", *flags, **job)
    assert done.code == 0, done.err
    words = json.loads(done.out)
    torchrun = words[words.index("torchrun") :]
    options = dict(zip(torchrun[1:13:2], torchrun[2:13:2], strict=True))
    assert options == {
        "--nnodes": "2",
        "--nproc-per-node": "8",
        "--rdzv-id": "41234",
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": "node7:21234",
        "--max-restarts": "0",
    }
    module = ["-m", "vpmoe.pretrain", "--config", "configs/vpmoe-6b.toml"]
    assert torchrun[13:] == [*module, "--synth-kd-data", "data dir", *flags]
    assert stubbed.run(script, "configs/vpmoe-6b.toml", **job).code == 2


def test_an_offline_runner_leaves_its_own_run_alone(golden_project: Any, tmp_path: Path) -> None:
    runner = make_runner(golden_project.copy(tmp_path / "clone"), tmp_path / "tools")
    old = runner.project.root / "runs/29990101T000000-cpu-000000000000"
    old.mkdir(parents=True)
    (old / "verdict.json").write_text("{}")
    out = tmp_path / "out"
    script = "../run_offline.sh"
    root = str(runner.project.root)
    job = runner.run(script, "-", root, str(out), "plain_seed", "--lane", "cpu")
    assert job.code == 0, job.err
    assert json.loads((out / "verdict.json").read_text())["verdict"] == "PASS"
    files = {path.name for path in out.iterdir()}
    assert files >= {"verdict.json", "junit.xml", "report.html", "traces", "log.txt"}
    assert (out / "traces/plain_seed/trace.json").exists()

    empty = tmp_path / "empty"
    refused = runner.run(script, "-", root, str(empty), "no_such_case", "--lane", "cpu")
    assert refused.code == 2
    assert "left no run" in refused.err
    assert list(empty.iterdir()) == []
    assert runner.run(script, "no-wheelhouse", root, str(empty)).code == 2
    assert runner.run(script, "-").code == 2


def test_a_checkout_may_be_at_a_path_with_a_colon(project_type: Any, tmp_path: Path) -> None:
    root = tmp_path / "run:7" / "clone"
    root.mkdir(parents=True)
    project = project_type(root)
    project.git("init", "-q")
    runner = make_runner(project, tmp_path / "tools")
    runner.install("golden", STUB)
    answer(runner, "check", 0, {**VERDICT, "verdict": "PASS"})
    job = runner.run("pre_merge.sh")
    assert job.code == 0, job.err
    (call,) = recorded(runner)
    link = call[-1].removeprefix("GATE=")
    assert link.endswith("/checkout")
    assert not Path(link).parent.exists()  # it is gone with the job

    (runner.tools / "golden").unlink()
    refused = runner.run("pre_merge.sh")
    assert refused.code == 2
    assert f"{root}: no environment can be made at a path with a colon" in refused.err

    runner.install("python3", '#!/bin/sh\nreadlink "${PYTHONPATH%%:*}" >"$(dirname "$0")/seen"\n')
    runner.run("../run_offline.sh", "-", str(root), str(tmp_path / "out"))
    assert (runner.tools / "seen").read_text().strip() == str(root)
