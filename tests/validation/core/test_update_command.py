"""`golden update` as a process: what it refuses, what it leaves, and that it is never half done."""

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from validation.goldens import GoldenStore


def higher_rate(project: Any) -> None:
    """An intended change of `plain_seed`, committed."""
    project.edit("lr=3e-3", "lr=4e-3")
    project.commit("a higher rate")


def test_refusals(golden_project: Any) -> None:
    project = golden_project
    before = project.git("rev-parse", "HEAD:goldens")
    assert project.golden("update", "plain_seed").code == 2
    assert "reason" in project.golden("update", "plain_seed", "--reason", " ").err
    project.edit("lr=3e-3", "lr=4e-3")
    answer = project.golden("update", "plain_seed", "--reason", "r")
    assert answer.code == 2
    assert "plain_loop.py" in answer.err
    project.commit("a higher rate")
    answer = project.golden("update", "plain_seed", "--reason", "r")
    assert answer.code == 2
    assert "plain_seed:learning_rate" in answer.err
    for expect in ("plain_seed:learning_rate:down", "plain_seed:*:sideways", "plain_seed"):
        words = ["update", "plain_seed", "--reason", "r", "--expect", expect]
        assert project.golden(*words).code == 2, expect
    words = ["update", "plain_seed", "--reason", "r", "--expect", "plain_seed:*:any:1e-9"]
    assert project.golden(*words).code == 2
    project.git("add", "-A")
    assert project.git("write-tree", "--prefix=goldens/") == before, "nothing was written"


def test_a_refusal_is_ready_to_paste_and_trains_no_more(golden_project: Any) -> None:
    project = golden_project
    higher_rate(project)
    reason = "it's faster; really"
    answer = project.golden(
        "update", "plain_seed", "--reason", reason, "--expect", "plain_seed:learning_rate:up"
    )
    assert answer.code == 2
    _, command = answer.err.split("as it is:\n")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:4] == ["golden", "update", "plain_seed", "--from"]
    assert words[words.index("--reason") + 1] == reason
    assert "plain_seed:learning_rate:up" in words
    assert len(words) < 60, "grouped by metric"
    runs = set((project.root / "runs").iterdir())
    answer = project.golden(*words[1:])
    assert answer.code == 0, answer.err
    new = set((project.root / "runs").iterdir()) - runs
    assert not any((run / "traces").exists() for run in new), "only canaries were run"
    audits = [json.loads(p.read_text()) for p in (project.root / "goldens/audit").iterdir()]
    (audit,) = [a for a in audits if a["reason"] == reason]
    assert "plain_seed:learning_rate:up" in audit["expected"]
    assert audit["goldens"][0]["compared"] > audit["goldens"][0]["identical"]


def test_what_nothing_can_answer_is_refused_before_training(golden_project: Any) -> None:
    project = golden_project
    higher_rate(project)
    runs = set((project.root / "runs").iterdir())
    for expect, hint in (
        ("plain_sed:lm_loss:down", "did you mean plain_seed"),
        ("plain_loss:lm_loss:down", "not among what is accepted"),
        ("plain_seed:lm_los:down", "did you mean lm_loss"),
    ):
        words = ["--reason", "r", "--expect", "plain_seed:*:any", "--expect", expect]
        answer = project.golden("update", "plain_seed", *words)
        assert answer.code == 2
        assert hint in answer.err
    assert set((project.root / "runs").iterdir()) == runs


def test_an_accepted_change(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    tolerances = store.load("cpu", "plain_seed").tolerances
    higher_rate(project)
    words = ["--reason", "trains faster", "--expect", "plain_seed:*:any"]
    answer = project.golden("update", "plain_seed", *words)
    assert answer.code == 0, answer.err
    assert "learning_rate" in answer.out
    golden = store.load("cpu", "plain_seed")
    assert golden.accepted["reason"] == "trains faster"
    assert golden.accepted["author"] == "Ada <ada@example.org>"
    assert golden.tolerances == tolerances
    provenance = golden.trace.provenance
    assert provenance["commit"] == project.git("rev-parse", "HEAD").strip()
    assert provenance["dirty"] == []
    assert {"source_digest", "command", "environment", "case_digest"} <= set(provenance)
    audits = [json.loads(p.read_text()) for p in (store.folder / "audit").iterdir()]
    (audit,) = [a for a in audits if a["reason"] == "trains faster"]
    assert audit["goldens"][0]["case"] == "plain_seed"
    assert project.golden("check", "plain_seed").code == 0
    assert project.golden("diff", "plain_seed").code == 1
    project.commit("accept")
    assert project.golden("diff", "plain_seed").code == 0
    row = {r["case"]: r for r in project.golden("list", "--json").json()["cases"]}["plain_seed"]
    assert row["reason"] == "trains faster"
    assert row["detectable_effect"]["lm_loss"] < 1e-4


def test_runs_made_elsewhere(golden_project: Any, tmp_path: Path) -> None:
    project = golden_project
    higher_rate(project)
    elsewhere = project.copy(tmp_path / "runner")
    assert elsewhere.golden("check").code == 1
    run = elsewhere.latest_run()
    words = ["--reason", "from a runner"]
    words += ["--expect", "plain_loss:*:any", "--expect", "plain_seed:*:any"]

    def refused(folder: Path, *more: str) -> str:
        answer = project.golden("update", *more, "--from", str(folder), *words)
        assert answer.code == 2, answer.out
        return answer.err

    edited = shutil.copytree(run, tmp_path / "edited")
    curves = edited / "traces" / "plain_seed" / "curves.json"
    curves.write_text(curves.read_text().replace("0.", "1.", 1))
    assert "curves.json" in refused(edited)
    lacking = shutil.copytree(run, tmp_path / "lacking")
    shutil.rmtree(lacking / "traces" / "plain_seed")
    assert "plain_seed" in refused(lacking, "plain_seed")
    assert "no traces" in refused(tmp_path)
    answer = project.golden("update", "--from", str(run), *words)
    assert answer.code == 0, answer.err
    assert project.golden("check").code == 0
    project.commit("accept")
    (project.root / "README.md").write_text("A plain loop.\n")
    project.commit("the same source")
    answer = project.golden("update", "--from", str(run), "--reason", "once more")
    assert answer.code == 0, answer.err
    project.commit("accept it once more")
    project.edit("total_iters=4", "total_iters=5")
    project.commit("another tree")
    assert "another source tree" in refused(run)


def test_killed_at_any_moment_the_golden_is_old_or_new(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    old = store.load("cpu", "plain_seed")
    higher_rate(project)
    assert project.golden("check", "plain_seed").code == 1
    run = project.latest_run()
    command = [sys.executable, "-m", "validation.cli", "update", "plain_seed", "--from", str(run)]
    command += ["--reason", "r", "--expect", "plain_seed:*:any"]
    pause = random.Random(1)
    seen = set()
    took = 1.0
    for attempt in range(16):
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env=project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        began = time.monotonic()
        if attempt == 0:
            process.wait(120)
            took = time.monotonic() - began
            assert process.returncode == 0
        else:
            time.sleep(took * pause.uniform(0.5, 1.1))
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        golden = store.load("cpu", "plain_seed")
        seen.add(golden.trace == old.trace)
        assert golden.accepted["reason"] in (old.accepted["reason"], "r")
        if attempt % 4 == 3:  # start again from the old golden
            project.git("checkout", "-q", "--", "goldens")
            assert store.load("cpu", "plain_seed").trace == old.trace
    assert seen, "both were seen, or at least one, whole each time"


def test_a_run_that_broke_an_invariant_is_no_golden(plain_project: Any) -> None:
    """Accepted, it would let every run pass that breaks it in the same way."""
    project = plain_project
    project.edit(
        '    recorder.table("window"',
        '    recorder.invariant("0", "two is one", 1.0, 0.5)\n    recorder.table("window"',
        "plain_cases.py",
    )
    project.commit("An invariant that does not hold")
    answer = project.golden("update", "plain_seed", "--reason", "the first golden")
    assert answer.code == 2, answer.out
    assert "plain_seed: step 0, 0, rank 0: two is one does not hold: 1.0, at most 0.5" in answer.err
    assert not (project.root / "goldens").exists()
