"""Ctrl-C at any moment of a command's start or end: one line at most, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# At the import that is named, or where the interpreter ends, the signal comes.
_HOOK = """
import atexit, os, signal, sys
moment, number = os.environ["MOMENT"], int(os.environ["NUMBER"])
class Hook:
    def find_spec(self, name, path=None, target=None):
        if moment == "list":
            print(name, file=sys.stderr)
        elif name == moment:
            signal.raise_signal(number)
sys.meta_path.insert(0, Hook())
if moment == "the end":
    atexit.register(signal.raise_signal, number)
"""


def run(
    folder: Path, moment: str, *words: str, number: int = 2, ignored: bool = False
) -> "subprocess.CompletedProcess[str]":
    (folder / "sitecustomize.py").write_text(_HOOK)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "MOMENT": moment, "NUMBER": str(number)}
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if ignored else []
    return subprocess.run(
        [*shell, sys.executable, "-m", "validation.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every module that `golden --version` imports once its own code runs, in order."""
    names = run(tmp_path_factory.mktemp("list"), "list", "--version").stderr.split()
    return list(dict.fromkeys(names[names.index("validation.cli.__main__") + 1 :]))


def moments(imported: list[str], count: int) -> list[str]:
    """The first imports, where least is in place, and some of the others."""
    first, rest = imported[:4], imported[4:]
    return first + rest[:: max(1, len(rest) // count)]


def test_ctrl_c_while_the_modules_are_imported(tmp_path: Path, imported: list[str]) -> None:
    assert len(imported) > 100
    for moment in moments(imported, 8):
        ended = run(tmp_path, moment, "list")
        assert ended.returncode == 130, moment
        assert ended.stdout == "", moment
        assert ended.stderr in ("", "golden: interrupted\n"), moment


def test_sigterm_while_the_modules_are_imported(tmp_path: Path, imported: list[str]) -> None:
    for moment in moments(imported, 3)[4:]:
        ended = run(tmp_path, moment, "list", number=15)
        assert (ended.returncode, ended.stderr) == (130, "golden: interrupted\n"), moment


def test_ctrl_c_when_the_work_is_done_changes_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "the end", "completion", "bash")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "golden" in ended.stdout


def test_a_start_that_ignores_ctrl_c_goes_on(tmp_path: Path, imported: list[str]) -> None:
    ended = run(tmp_path, imported[len(imported) // 2], "completion", "bash", ignored=True)
    assert (ended.returncode, ended.stderr) == (0, "")
