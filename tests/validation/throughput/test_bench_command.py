"""`golden bench` as a process: its exit codes, what it leaves, and that nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# Blocks of a few steps; effects that only a plant has; whatever else this machine does.
QUICK = ("--pairs", "18", "--block", "0.02", "--min-effect", "0.1")
ANYHOW = (*QUICK, "--max-neighbours", "1")


def bench_file(root: Path) -> dict[str, Any]:
    """What the only benchmark left."""
    (path,) = (root / "runs").glob("*/bench.json")
    return dict(json.loads(path.read_text()))


def test_the_same_code_is_measured_and_leaves_its_blocks(paced_project: Any) -> None:
    project = paced_project
    answer = project.golden("bench", "--base", "HEAD", "--json", *ANYHOW)
    document = answer.json()
    (case,) = document["cases"]
    # A busy machine may make one side slow: what is proved is asked of the figures elsewhere.
    assert answer.code == {"PASS": 0, "FAIL": 1}[document["verdict"]], answer.err
    assert (document["lane"], case["case"]) == ("cpu", "paced")
    assert document["base"] == document["head"] == project.git("rev-parse", "HEAD").strip()
    for side in ("base", "head"):
        figures = case["figures"][side]
        assert figures["step_seconds"] > 0.005
        assert 0 < figures["tokens_per_second"] < 8 / 0.005
        assert figures["mfu"] is None
        assert 0.1 < figures["optimizer_share"] < 0.4
        assert figures["relative_cost"] > 0
        assert figures["peak_bytes"] > 2**20
    assert case["judgement"]["detectable"] - 1 > 0
    kept = bench_file(project.root)["cases"][0]["quads"]
    assert len(kept) == 9
    assert {tuple(block["side"] for block in quad) for quad in kept} == {
        ("base", "head", "head", "base"),
        ("head", "base", "base", "head"),
    }
    assert all(block["machine"]["neighbours"] >= 0 for quad in kept for block in quad)
    assert project.git("worktree", "list").count("\n") == 1
    assert not project.git("status", "--porcelain")


def test_a_benchmark_is_drawn_and_published(paced_project: Any, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    project = paced_project
    store = {"GOLDEN_MLFLOW": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    answer = project.golden("bench", "--base", "HEAD", *ANYHOW, "--report", "reports", **store)
    assert answer.code in (0, 1), answer.err
    assert "warning" not in answer.err
    (run,) = (project.root / "runs").glob("*-cpu-*")
    assert (run / "trend.html").read_bytes() == (project.root / "reports/trend.html").read_bytes()
    (sent,) = json.loads((run / "publish.json").read_text())["stores"].values()
    assert sent["sent"]
    assert project.golden("publish", **store).out == "0 sent, 0 still waiting\n"
    # A store that cannot be written costs no verdict.
    blocked = {**store, "MLFLOW_TRACKING_URI": f"sqlite:///{run}/bench.json/mlflow.db"}
    answer = project.golden("bench", "--base", "HEAD", *ANYHOW, **blocked)
    assert answer.code in (0, 1), answer.err
    assert "warning: not logged to MLflow" in answer.err
    answer = project.golden("bench", "--trend", "--report", "past")
    page = (project.root / "past/trend.html").read_text()
    assert answer.code == 0
    assert page.count('<td class="mono">20') == answer.out.count("-cpu-") == 2


def test_a_slower_head_fails_with_what_got_slower(paced_project: Any) -> None:
    project = paced_project
    project.edit("STEP = 0.004", "STEP = 0.006", "paced_loop.py")
    answer = project.golden("bench", "paced", "--base", "HEAD", *ANYHOW)
    assert answer.code == 1, answer.err
    assert "case: paced FAIL: steps are" in answer.out
    assert "ms of a step, profiled" in answer.out
    assert "aten::add_" in answer.out
    ratio = bench_file(project.root)["cases"][0]["judgement"]["ratio"]
    assert 1.2 < ratio < 1.6


def test_a_planted_slowdown_is_found_and_is_no_fault_of_a_check(paced_project: Any) -> None:
    project = paced_project
    answer = project.golden("bench", "--base", "HEAD", "--fault", "slow", "--json", *ANYHOW)
    assert answer.code == 1, answer.err
    assert answer.json()["fault"] == "paced:slow"
    assert project.golden("faults", "--only", "slow").code == 2
    # A planted slowdown is no point of the trend.
    assert project.golden("bench", "--trend", "--json").json() == {"lane": "cpu", "cases": {}}


def test_more_memory_fails_even_on_a_disturbed_machine(paced_project: Any) -> None:
    project = paced_project
    project.edit("STEP = 0.004", "STEP = 0.004\nKEPT = b'x' * 2**28", "paced_loop.py")
    answer = project.golden("bench", "--base", "HEAD", *QUICK, "--max-neighbours", "0")
    assert answer.code == 1, answer.err
    assert "peak memory grew by" in answer.out


def test_a_neighbour_makes_the_machine_unfit(paced_project: Any) -> None:
    project = paced_project
    project.edit("STEP = 0.004", "STEP = 0.006", "paced_loop.py")
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        share = str(0.3 / (os.cpu_count() or 1))
        answer = project.golden("bench", "--base", "HEAD", *QUICK, "--max-neighbours", share)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert answer.code == 4, answer.out + answer.err
    assert "case: paced UNFIT: others used" in answer.out


def test_a_lane_that_this_machine_is_not_is_unfit(paced_project: Any) -> None:
    project = paced_project
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a card")
    project.edit('lanes=["cpu"]', 'lanes=["cpu", "h200"]', "plain_cases.py")
    answer = project.golden("bench", "--base", "HEAD", "--lane", "h200", "--json")
    assert answer.code == 4
    assert answer.json()["cases"][0]["message"] == "lane h200 has 1 GPU(s), this machine has 0"


def test_what_is_refused(paced_project: Any) -> None:
    project = paced_project
    for words, text in (
        (("--base", "no-such-revision"), "no-such-revision"),
        (("plain_loss", "--base", "HEAD"), "plain_loss"),
        (("--base", "HEAD", "--pairs", "17"), "even"),
        (("--base", "HEAD", "--pairs", "16"), "at least 18"),
        (("--base", "HEAD", "--block", "0"), "--block"),
        (("--base", "HEAD", "--fault", "wide_window"), "there are: slow"),
        ((), "--base"),
    ):
        answer = project.golden("bench", *words)
        assert (answer.code, answer.out) == (2, ""), (words, answer.err)
        assert text in answer.err


@pytest.mark.parametrize(
    ("edit", "side", "text"),
    [
        (("time.sleep(STEP)", "raise RuntimeError('no kernel')", "paced_loop.py"), "head", "no ke"),
        # How a case is paced is the head's to say, of both sides.
        (('"paced:run"', '"paced:ends"', "plain_cases.py"), "base", "ended by itself"),
    ],
)
def test_a_side_that_fails_is_named(paced_project: Any, edit: Any, side: str, text: str) -> None:
    project = paced_project
    project.edit(*edit)
    answer = project.golden("bench", "--base", "HEAD", *ANYHOW)
    assert answer.code == 2
    assert f"the training of the {side} ended with exit code 1" in answer.err
    assert text in answer.err
    assert project.git("worktree", "list").count("\n") == 1


def test_the_base_is_judged_by_its_own_code(paced_project: Any) -> None:
    project = paced_project
    project.edit("time.sleep(STEP)", "raise RuntimeError('no kernel')", "paced_loop.py")
    project.commit("Broken")
    project.edit("raise RuntimeError('no kernel')", "time.sleep(STEP)", "paced_loop.py")
    answer = project.golden("bench", "--base", "HEAD", *ANYHOW)
    assert answer.code == 2
    assert "the training of the base" in answer.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_benchmark_leaves_no_process(
    paced_project: Any, tmp_path: Path, number: int
) -> None:
    project = paced_project
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "validation.cli", "bench", "--base", "HEAD", "--pairs", "100000"],
        cwd=project.root,
        env=project.environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "four blocks" in line:
            break
    sides = _children(process.pid)
    assert len(sides) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    until = time.monotonic() + 30
    while any(map(_alive, sides)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_alive, sides))
    if number != signal.SIGKILL:
        assert not list(temporary.iterdir())


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
