"""Ctrl-C while `vpmoe` starts or has ended: one line at most, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# At the import that is named, or where the interpreter ends, Ctrl-C comes.
_HOOK = """
import atexit, os, signal, sys
moment = os.environ["MOMENT"]
class Hook:
    def find_spec(self, name, path=None, target=None):
        if moment == "list":
            print(name, file=sys.stderr)
        elif name == moment:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Hook())
if moment == "the end":
    atexit.register(signal.raise_signal, signal.SIGINT)
"""


def run(folder: Path, moment: str, *words: str) -> "subprocess.CompletedProcess[str]":
    (folder / "sitecustomize.py").write_text(_HOOK)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "vpmoe.cli", *words],
        env={**os.environ, "PYTHONPATH": paths, "MOMENT": moment},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_ctrl_c_while_a_command_is_imported(tmp_path: Path) -> None:
    words = ("data", "render", "--input", "none.jsonl")
    names = [n for n in run(tmp_path, "list", *words).stderr.splitlines() if " " not in n]
    imported = list(dict.fromkeys(names[names.index("vpmoe.cli") + 1 :]))
    assert len(imported) > 100
    for moment in (*imported[:3], *imported[3 :: len(imported) // 6]):
        ended = run(tmp_path, moment, *words)
        assert ended.returncode == 130, moment
        assert ended.stdout == "", moment
        line = ended.stderr.removesuffix("\n")
        assert line.startswith("vpmoe data: interrupted"), moment
        assert "\n" not in line, moment


@pytest.mark.parametrize("moment", ["torch", "torch.nn", "vpmoe.pretrain"])
def test_ctrl_c_while_a_training_is_imported(tmp_path: Path, moment: str) -> None:
    ended = run(tmp_path, moment, "pretrain", "--mock-data")
    assert (ended.returncode, ended.stderr) == (130, "vpmoe pretrain: interrupted\n")


def test_ctrl_c_when_the_work_is_done_changes_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "the end", "data", "render", "--input", "none.jsonl")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
