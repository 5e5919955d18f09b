"""`golden check` as a process: verdicts, exit codes, one JSON object, and nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.config import Lane
from validation.goldens import GoldenStore
from validation.goldens.canaries import Canaries
from validation.running.environment import describe, machine_type
from validation.trace import load_trace

CASE_KEYS = {
    "case",
    "verdict",
    "compared",
    "identical",
    "largest_ratio",
    "largest_at",
    "skipped_because",
    "seconds",
    "first_divergence",
    "message",
}
VERDICT_KEYS = {
    "verdict",
    "lane",
    "seconds",
    "environment",
    "canary",
    "largest_ratio",
    "calibrated_here",
    "message",
    "cases",
}
DIVERGENCE_KEYS = {
    "step",
    "micro_batch",
    "phase",
    "module",
    "tensor",
    "rank",
    "offset",
    "expected",
    "actual",
    "relative_error",
    "tolerance",
}


def test_an_unchanged_tree_passes_in_another_environment(golden_project: Any) -> None:
    answer = golden_project.golden(
        "check", "--json", OMP_NUM_THREADS="2", ATEN_CPU_CAPABILITY="default"
    )
    verdict = answer.json()
    assert answer.code == 0, (verdict, answer.err)
    assert set(verdict) == VERDICT_KEYS
    assert (verdict["verdict"], verdict["lane"]) == ("PASS", "cpu")
    assert verdict["canary"]["caught"] is True
    assert all(set(case) == CASE_KEYS for case in verdict["cases"])
    assert all(0 < case["identical"] < case["compared"] for case in verdict["cases"])
    assert verdict["environment"]["cpu_isa"] == "DEFAULT"
    assert verdict["environment"]["threads"] == 2
    assert all(0 < case["largest_ratio"] <= 1 for case in verdict["cases"])
    assert all(set(case["largest_at"]) == DIVERGENCE_KEYS for case in verdict["cases"])
    nearest = max(verdict["cases"], key=lambda case: case["largest_ratio"])
    assert verdict["largest_ratio"] == nearest["largest_ratio"]
    assert verdict["message"].startswith("WITHIN TOLERANCE: 2 cases ran")
    assert nearest["largest_at"]["module"] in verdict["message"]


def test_a_run_of_the_goldens_own_bits_is_identical(golden_project: Any) -> None:
    golden_project.edit('"""A tiny', '"""A very tiny')
    answer = golden_project.golden("check", "--json")
    verdict = answer.json()
    assert answer.code == 0, answer.err
    assert verdict["message"].startswith("IDENTICAL: 2 cases ran")
    assert verdict["largest_ratio"] == 0
    for case in verdict["cases"]:
        assert case["identical"] == case["compared"] > 0
        assert (case["largest_ratio"], case["largest_at"]) == (0, None)


def test_a_machine_that_was_calibrated_is_known_and_another_is_told(
    golden_project: Any, measured_as: Callable[..., Any]
) -> None:
    project = golden_project
    elsewhere = {"ATEN_CPU_CAPABILITY": "default"}
    store = GoldenStore(project.root / "goldens")
    here = machine_type(describe(Lane(name="cpu")))
    for machine in ("SomeVendor 1/2", here):
        for name in ("plain_loss", "plain_seed"):
            golden = store.load("cpu", name)
            listed = [{"machine": machine, "runs": 8, "largest_ratio": 0.5}]
            measured_as(store, golden, golden.tolerances, calibrated_on=listed)
        verdict = project.golden("check", "--json", **elsewhere).json()
        assert verdict["verdict"] == "PASS"
        assert verdict["calibrated_here"] is (machine == here)
        assert ("Nobody calibrated" in verdict["message"]) is (machine != here)
    text = project.golden("check", **elsewhere).out
    assert "PASS WITHIN TOLERANCE" in text
    assert "Nobody calibrated" not in text


def test_a_moved_case_fails_and_is_named_in_every_sink(golden_project: Any) -> None:
    project = golden_project
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    words = ["--json", "--report", "out", "--junit", "out/junit.xml"]
    answer = project.golden("check", "plain_loss", *words)
    assert answer.code == 1, answer.err
    case = answer.json()["cases"][0]
    first = case["first_divergence"]
    assert set(first) == DIVERGENCE_KEYS
    assert (first["step"], first["phase"], first["module"]) == (1, "forward", "1.out")
    assert first["relative_error"] > first["tolerance"] > 0
    assert "1.out" in (project.root / "out" / "report.html").read_text()
    failure = ET.parse(project.root / "out" / "junit.xml").getroot().find(".//failure")
    assert failure is not None
    assert "1.out" in str(failure.get("message"))
    run = project.latest_run()
    left = {path.name for path in run.iterdir()}
    assert {"verdict.json", "junit.xml", "report.html", "traces", "log.txt"} <= left
    stored = json.loads((run / "verdict.json").read_text())
    assert stored["cases"][0]["first_divergence"]["module"] == "1.out"


def test_exact_requires_every_bit(golden_project: Any) -> None:
    assert golden_project.golden("check", "plain_seed", "--exact").code == 0
    answer = golden_project.golden(
        "check", "plain_seed", "--exact", "--json", ATEN_CPU_CAPABILITY="default"
    )
    assert answer.code == 1
    assert answer.json()["cases"][0]["first_divergence"]["tolerance"] == 0


def test_a_missing_or_damaged_golden_is_invalid_and_named(golden_project: Any) -> None:
    project = golden_project
    folder = project.root / "goldens" / "cpu" / "plain_seed"
    curves = folder / "curves.json"
    content = curves.read_bytes()
    curves.write_bytes(content[: len(content) // 2])
    answer = project.golden("check", "plain_seed")
    assert answer.code == 3
    assert str(curves) in answer.out
    for path in folder.iterdir():
        path.unlink()
    answer = project.golden("check", "--json")
    assert answer.code == 3
    messages = {case["case"]: case["message"] for case in answer.json()["cases"]}
    assert "golden update plain_seed" in messages["plain_seed"]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (("total += loss.item()", "total += float('nan')"), "lm_loss"),
        (('recorder.curve(step, "lm_loss", loss)', "pass"), "lm_loss"),
        (('"grad_norm", norm', '"grad_norms", norm'), "grad_norm"),
        (("import torch\n", "import torch\nimport no_such_module\n"), "no_such_module"),
        (("total = 0.0", "total = 0.0 / (step < 3)"), "ZeroDivisionError"),
    ],
)
def test_nothing_else_passes(golden_project: Any, edit: tuple[str, str], text: str) -> None:
    project = golden_project
    in_loop = edit[0] in (project.root / "plain_loop.py").read_text()
    project.edit(*edit, "plain_loop.py" if in_loop else "plain_cases.py")
    answer = project.golden("check", "plain_seed", "--json")
    assert answer.code in (1, 3), answer.out
    assert text in answer.out


def test_a_moved_adapter_and_edited_documents_leave_the_goldens_valid(golden_project: Any) -> None:
    project = golden_project
    # The adapter alone: a file that names faults of `plain_cases` makes that one source, too.
    adapter = (project.root / "plain_cases.py").read_text().partition("\n\nCASES = [")[0]
    (project.root / "watch").mkdir()
    (project.root / "watch/loop.py").write_text(adapter)
    project.edit('"plain_cases:run"', '"watch.loop:run"', "plain_cases.py")
    for name in ("README.md", "docs/guide.md", "tests/test_loop.py", ".github/workflows/a.yml"):
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_text("edited\n")
    project.commit("Move the adapter, write documents")
    assert project.golden("health").out == "healthy\n"
    answer = project.golden("check")
    assert answer.code == 0, answer.out
    trace = load_trace(project.latest_run() / "traces" / "plain_loss").provenance
    project.edit('"steps": 12, ', '"steps": 13, ', "plain_cases.py")
    answer = project.golden("check", "plain_loss")
    assert answer.code == 3
    assert "another declaration of the case: its settings differ (steps)" in answer.out
    moved = load_trace(project.latest_run() / "traces" / "plain_loss").provenance
    assert moved["source_digest"] == trace["source_digest"]
    assert moved["tree_digest"] != trace["tree_digest"]


def test_usage_and_unfit(golden_project: Any) -> None:
    project = golden_project
    answer = project.golden("check", "no_such_case")
    assert (answer.code, answer.out) == (2, "")
    assert "plain_seed" in answer.err
    assert project.golden("check", "--lane", "tpu").code == 2
    assert project.golden("check", cwd=Path("/")).code == 2
    # A lane that no case serves compares nothing; one that needs a card finds none here.
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        project.edit('lanes=["cpu"]', 'lanes=["cpu", "h200"]', "plain_cases.py")
        assert project.golden("check", "--lane", "h200").code == 4


def test_the_canary_is_one_that_the_golden_lists(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    lists = {name: store.load("cpu", name).canaries for name in store.names("cpu")}
    assert set(lists["plain_loss"].proofs) == {"wide_window"}
    assert set(lists["plain_seed"].proofs) == {"halved_gradient"}
    assert lists["plain_loss"].proofs["wide_window"].margin == float("inf")
    shown = project.golden("show", str(store.path("cpu", "plain_seed") / "golden.json")).out
    assert "canary: halved_gradient: caught at training.grad_norm in 2 steps" in shown
    # The draw is from what is certain, whichever case is checked, and the same at every rerun.
    golden = store.load("cpu", "plain_seed")
    weak = {n: replace(p, margin=9.9) for n, p in golden.canaries.proofs.items()}
    store.save(replace(golden, canaries=replace(golden.canaries, proofs=weak)))
    answers = [project.golden("check", "plain_seed", "--json") for _ in range(2)]
    assert [a.code for a in answers] == [0, 0], answers[0].err
    assert {a.json()["canary"]["fault"] for a in answers} == {"wide_window"}


def test_without_a_proven_canary_the_check_says_so_and_may_pass(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    for name in store.names("cpu"):
        store.save(replace(store.load("cpu", name), canaries=Canaries()))
    answer = project.golden("check", "plain_seed")
    assert answer.code == 0, answer.out
    assert "the canary is an edited record of plain_seed" in answer.out
    assert "golden calibrate" in answer.out
    assert "1 case ran and matched" in answer.out
    assert project.golden("health").code == 1
    assert project.golden("faults").code == 0
    assert project.golden("health").code == 0
    canary = project.golden("check", "plain_seed", "--json").json()["canary"]
    assert canary["fault"] in ("wide_window", "halved_gradient")


def test_a_canary_that_cannot_be_run_is_told_from_one_that_is_missed(golden_project: Any) -> None:
    project = golden_project
    for old in ("plain_loop.WINDOW + 1", "parameter.grad.mul_(0.5)"):
        project.edit(old, "raise_an_error()", "plain_cases.py")
    answer = project.golden("check", "plain_seed")
    assert answer.code == 3
    assert "could not be run: the run failed" in answer.out
    assert "blind" not in answer.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_check_leaves_no_process(golden_project: Any, number: int) -> None:
    project = golden_project
    project.edit("total = 0.0", "total = 0.0; import time; time.sleep(1)")
    process = subprocess.Popen(
        [sys.executable, "-m", "validation.cli", "check"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while len(_working_in(project.root)) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(_working_in(project.root)) == 3, "the command, the warm parent and a run"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    until = time.monotonic() + 30
    while _working_in(project.root) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _working_in(project.root)
    assert project.golden("list").code == 0


def _working_in(root: Path) -> list[int]:
    """Processes whose working directory is the repository."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if (entry / "cwd").readlink() == root.resolve():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
