"""`golden` as somebody meets it: help, typing errors, completion, pipes that close, odd files."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from validation.cli.program import build_parser, main
from validation.cli.suggest import nearest, unknown

NEXT = re.compile(r"^  golden (diff .*)$", re.MULTILINE)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that needs no repository."""
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_alone_it_shows_the_commands_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys)
    assert (code, err) == (2, "")
    places = [out.index(f"\n{group}:\n") for group in ("look", "every day", "speed")]
    assert places == sorted(places)
    _, commands = build_parser()
    shown = re.findall(r"^  (\w+) {2,}\S", commands.described(), re.MULTILINE)
    assert {"list", "check", "update", "completion"} <= set(shown)
    assert "merge-driver" not in out
    assert "more:" not in out, "a command that belongs to no group"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--version")
    assert code == 0
    assert re.match(r"golden \S+.*schema \d", out)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["chek"], "check"),
        (["dif", "x"], "diff"),
        (["check", "--jsn"], "--json"),
        (["bench", "--baze", "HEAD"], "--base"),
        (["update", "--resaon=x"], "--reason"),
    ],
)
def test_a_slip_of_the_pen_is_answered_by_what_was_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, *words)
    assert (code, out) == (2, "")
    assert re.search(rf"did you mean (\S+ or )*{meant}\b", err)


def test_near_names() -> None:
    cases = ["tiny_moe", "tiny_dense", "layout_tp", "cpu"]
    assert nearest("tinymoe", cases)[0] == "tiny_moe"
    assert nearest("TINY-MOE", cases)[0] == "tiny_moe"
    assert nearest("dense", cases) == ["tiny_dense"]
    assert nearest("gpu", cases) == []
    assert unknown("case", "zzzzzz", cases).endswith("cases: tiny_moe, tiny_dense, layout_tp, cpu")
    many = [f"fault-{n}" for n in range(100)]
    assert unknown("fault", "fault-5x", many).endswith("?")


def test_a_shell_completes_commands_and_cases(plain_project: Any) -> None:
    pytest.importorskip("argcomplete")
    code = plain_project.golden("completion", "bash")
    assert code.code == 0, code.err
    assert "complete " in code.out

    def completed(line: str) -> set[str]:
        variables = plain_project.environment(
            _ARGCOMPLETE="1", COMP_LINE=line, COMP_POINT=str(len(line)), _ARGCOMPLETE_IFS="\n"
        )
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m validation.cli 8>&1 9>/dev/null >/dev/null"],
            cwd=plain_project.root,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return {word.strip() for word in done.stdout.split("\n") if word.strip()}

    assert completed("golden expl") == {"explain"}
    assert completed("golden check plain_s") == {"plain_seed"}
    assert completed("golden check --lane h") == {"h200"}


@pytest.mark.parametrize("words", ["list", "list --json", "--help", "list nosuch 2>&1"])
def test_a_closed_pipe_is_no_trouble(plain_project: Any, words: str) -> None:
    golden = f"{sys.executable} -m validation.cli"
    for reader in ("head -c 1 >/dev/null", "true"):
        done = subprocess.run(
            ["bash", "-c", f"{golden} {words} | {reader}; exit ${{PIPESTATUS[0]}}"],
            cwd=plain_project.root,
            env=plain_project.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (2 if "nosuch" in words else 0, "")


def test_a_full_disk_is_an_error_and_no_traceback(plain_project: Any) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m validation.cli list >/dev/full"],
        cwd=plain_project.root,
        env=plain_project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "golden list: output: No space left on device\n"


def test_odd_files_are_errors_that_name_them(
    plain_project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = plain_project.root
    monkeypatch.chdir(root)
    (root / "binary").write_bytes(bytes(range(256)))
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe")
    (root / "goldens" / "audit").mkdir(parents=True)
    for name in ("nofile", "binary", "empty", "pipe", "goldens", "goldens/audit", "binary/x"):
        for words in (
            ["show", name],
            ["explain", name],
            ["diff", "plain_seed", name],
            ["update", "--reason", "x", "--from", name],
            ["check", "--report", "binary"],
            ["check", "--junit", "empty"],
            ["faults", "--output", "binary/x"],
        ):
            code, out, err = said(capsys, *words)
            assert (code, out) == (2, ""), words
            assert "Traceback" not in err
            assert err.startswith(f"golden {words[0]}: ")


def test_the_next_command_shows_what_failed(golden_project: Any) -> None:
    project = golden_project
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    assert project.golden("check", "plain_seed").code == 1
    explained = project.golden("explain")
    (command,) = NEXT.findall(explained.out)
    shown = project.golden(*command.split())
    assert shown.code == 1, shown.err
    first, *rest = shown.out.splitlines()
    assert re.match(r"plain_seed, lane cpu: \d+ records compared, .* [1-9]\d* beyond", first)
    assert any(line.startswith("first difference: step ") for line in rest)
    assert "no difference" not in shown.out
    html = (project.latest_run() / "report.html").read_text()
    assert f"golden {command}" in html
    goldens = project.golden("diff", "plain_seed")
    assert goldens.code == 0
    assert goldens.out.endswith("no difference\nof a run, too: golden diff plain_seed RUN\n")
    assert project.golden("diff", "plain_loss", command.split()[-1]).code == 2


def test_a_line_of_each_case_fits_and_a_case_alone_tells_all(golden_project: Any) -> None:
    project = golden_project
    lines = project.golden("list", COLUMNS="80").out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["case", "plain_loss", "plain_seed"]
    assert max(map(len, lines)) <= 80
    assert re.match(r"plain_loss +cpu +\d+ (min|h|d) +lm_loss \S+ +the first goldens", lines[1])
    short = project.golden("list", COLUMNS="50").out.splitlines()
    assert max(map(len, short)) <= 50
    assert short[1].endswith("…")
    detail = project.golden("list", "plain_seed").out
    assert "plain_loss" not in detail
    for label in ("accepted", "reason", "detects", "calibrated", "canaries"):
        assert re.search(rf"^  {label} +\S", detail, re.MULTILINE)
    rows = project.golden("list", "plain_seed", "--json").json()["cases"]
    assert [row["case"] for row in rows] == ["plain_seed"]
    assert project.golden("list", "plain_sed").code == 2


def test_drivers_work_outside_the_environment_and_without_golden(golden_project: Any) -> None:
    project = golden_project
    assert project.golden("setup").code == 0
    project.commit("golden setup")
    head = project.root / "goldens" / "cpu" / "plain_seed" / "golden.json"
    head.write_text(head.read_text().replace("the first goldens", "another"))
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(project.root), "PYTHONPATH": ""}

    def git(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words],
            cwd=project.root,
            env={**bare, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    with_golden = git("diff", PYTHONPATH=project.environment()["PYTHONPATH"])
    assert '+accepted: reason: "another"' in with_golden.stdout
    for name in ("merge.golden.driver", "diff.golden.textconv"):
        value = project.git("config", name).strip()
        project.git("config", name, value.replace(sys.executable, "/nowhere/python"))
    plain = git("diff")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert '+  "reason": "another"' in plain.stdout
    assert git("show", "HEAD~1", "--", str(Path("goldens"))).returncode == 0

    # Without golden, two acceptances are a conflict as git has them.
    project.git("commit", "-qam", "one side")
    project.git("checkout", "-q", "-b", "other", "HEAD~1")
    head.write_text(head.read_text().replace("the first goldens", "a third"))
    project.git("commit", "-qam", "the other")
    assert git("merge", "-q", "main").returncode != 0
    text = head.read_text()
    assert "<<<<<<< ours" in text
    assert "another" in text
    assert "a third" in text
