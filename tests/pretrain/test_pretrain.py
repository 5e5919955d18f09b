"""The training entry: it trains, resumes bit for bit, obeys flags and refuses clearly."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pins the CPU lane's numbers")

STEPS = 4


@pytest.fixture(scope="module")
def runs(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, warm_runs: Callable[..., Any]
) -> dict[str, dict[str, Any]]:
    """Every run of this file, made from one warm process."""
    folder = tmp_path_factory.mktemp("pretrain")
    build = [sys.executable, "-m", "vpmoe.cli", "data", "build"]
    build += ["--input", str(repository / "data/sample/conversations.jsonl")]
    build += ["--output", str(folder / "data"), "--valid-fraction", "0"]
    subprocess.run(build, cwd=repository, check=True, capture_output=True)
    tiny = ["--config", str(repository / "configs/vpmoe-tiny.toml")]
    tiny += ["--synth-kd-data", str(folder / "data"), "--global-batch-size", "2"]
    saved = str(folder / "checkpoint")
    saving = ["--save", saved, "--save-interval", "2"]
    resumed = ["--train-iters", str(STEPS), "--load", saved]
    longer = ["--train-iters", str(STEPS + 2), "--exit-interval", str(STEPS), "--load", saved]
    longer += ["--log-interval", "2"]
    flags = {
        "straight": ["--train-iters", str(STEPS)],
        "first half": ["--train-iters", str(STEPS), "--exit-interval", "2", *saving],
        "second half": resumed,
        "lines of two": ["--train-iters", str(STEPS), "--log-interval", "2"],
        "another seed": ["--train-iters", "1", "--seed", "4321"],
        "dropout": ["--train-iters", "1", "--hidden-dropout", "0.1"],
        "dropout again": ["--train-iters", "1", "--hidden-dropout", "0.1"],
        "longer, in lines of two": longer,
        "another schedule": [*resumed, "--lr-decay-iters", "50"],
        "deterministic": ["--train-iters", "2", "--deterministic-mode"],
        "exit interval": ["--train-iters", str(STEPS), "--exit-interval", "1"],
        "refused": ["--train-iters", "1", "--attention-dropout", "0.1"],
        "no interval": ["--train-iters", "1", "--save", saved],
        "wrong vocabulary": ["--train-iters", "1", "--padded-vocab-size", "201216"],
    }
    found: dict[str, dict[str, Any]]
    found, log = warm_runs(folder, {name: tiny + more for name, more in flags.items()})
    found["log"] = {"text": log}
    return found


def test_it_trains_and_loss_falls(runs: dict[str, dict[str, Any]]) -> None:
    straight = runs["straight"]
    assert (straight["code"], straight["error"]) == (0, None), runs["log"]["text"][-4000:]
    losses = [step["lm_loss"] for step in straight["curve"]]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(math.log(201088), abs=0.2)
    assert losses[-1] < losses[0]


def test_saved_and_resumed_equals_straight_bit_for_bit(runs: dict[str, dict[str, Any]]) -> None:
    first, second = runs["first half"], runs["second half"]
    assert (first["error"], second["error"]) == (None, None), runs["log"]["text"][-4000:]
    assert len(first["curve"]) == 2
    halves = first["curve"] + second["curve"]
    assert halves == runs["straight"]["curve"]


@pytest.mark.parametrize(
    ("name", "intervals"),
    [
        ("straight", {1: [1], 2: [2], 3: [3], 4: [4]}),
        ("first half", {1: [1], 2: [2]}),
        ("second half", {3: [3], 4: [4]}),
        # The first iteration of a run has a line of its own, and stays in its interval.
        ("lines of two", {1: [1], 2: [1, 2], 4: [3, 4]}),
        ("longer, in lines of two", {3: [3], 4: [3, 4]}),
    ],
)
def test_each_line_of_the_log_is_the_mean_since_its_interval_began(
    runs: dict[str, dict[str, Any]], name: str, intervals: dict[int, list[int]]
) -> None:
    losses = [step["lm_loss"] for step in runs["straight"]["curve"]]
    printed = {}
    for line in runs[name]["lines"]:
        iteration, loss = (
            re.search(pattern, line) for pattern in (r"iteration +(\d+)/", r" lm loss: (\S+) ")
        )
        if iteration and loss:
            printed[int(iteration[1])] = float(loss[1])
    means = {last: sum(losses[n - 1] for n in of) / len(of) for last, of in intervals.items()}
    assert printed == {last: pytest.approx(mean, rel=1e-6) for last, mean in means.items()}


def test_a_resumed_run_may_be_longer_than_it_was_planned(runs: dict[str, dict[str, Any]]) -> None:
    longer = runs["longer, in lines of two"]
    assert longer["error"] is None
    assert longer["curve"] == runs["straight"]["curve"][2:]


def test_another_schedule_is_refused_with_the_flags_that_settle_it(
    runs: dict[str, dict[str, Any]],
) -> None:
    error = runs["another schedule"]["error"]
    for word in (
        "total number of iterations",
        "--lr-decay-iters",
        "--override-opt-param-scheduler",
    ):
        assert word in error
    assert runs["another schedule"]["curve"] == []


def test_everything_random_follows_the_seed(runs: dict[str, dict[str, Any]]) -> None:
    straight, other = (runs[name]["curve"][0] for name in ("straight", "another seed"))
    assert other["lm_loss"] != straight["lm_loss"]
    assert other["grad_norm"] != straight["grad_norm"]
    dropped = runs["dropout"]["curve"]
    assert dropped == runs["dropout again"]["curve"]
    assert dropped[0]["lm_loss"] != straight["lm_loss"]


def test_deterministic_mode_runs_and_is_left(runs: dict[str, dict[str, Any]]) -> None:
    run = runs["deterministic"]
    assert run["error"] is None
    assert run["curve"] == runs["straight"]["curve"][:2]
    assert run["deterministic"] is False


def test_leaving_restores_torch(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["straight"]["type"] == "torch.FloatTensor"


def test_exit_interval_stops_early_on_the_same_course(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["exit interval"]["code"] in (0, None)
    assert runs["exit interval"]["curve"] == runs["straight"]["curve"][:1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused", "--attention-dropout 0.1"),
        ("no interval", "assert args.save_interval is not None"),
        ("wrong vocabulary", "201088"),
    ],
)
def test_refusals_name_what_is_wrong(
    runs: dict[str, dict[str, Any]], name: str, words: str
) -> None:
    assert runs[name]["error"] is not None
    assert words in runs[name]["error"]
    assert runs[name]["curve"] == []


@pytest.fixture
def command(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `vpmoe` as a process."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vpmoe.cli", *words],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_unusable_preset_is_exit_2_and_named(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("pretrain", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "none.toml: no such preset" in done.stderr


def test_help_teaches(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--help")
    assert done.returncode == 0
    for word in ("pretrain", "tokenizer", "data", "params", "examples:"):
        assert word in done.stdout
