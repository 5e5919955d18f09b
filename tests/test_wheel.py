"""The wheels alone: README's commands that need no goldens, in a folder without a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def variables(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a shell that finds the installed wheels, and dependencies of the tests' own."""
    site = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--target", site, repository / "validation"]
    words.append(repository)
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "GIT_"))},
        "PYTHONPATH": str(site),
        "PATH": os.pathsep.join([str(site / "bin"), os.environ["PATH"]]),
    }


def commands(readme: str) -> list[str]:
    """The lines of `vpmoe` that name no folder of the reader's own."""
    (block,) = re.findall(r"```bash\nsource .*?\n(.*?)```", readme, re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("vpmoe ") and " DIR" not in line]


def shell(line: str, folder: Path, variables: dict[str, str]) -> str:
    """Runs a line as it is written; returns its output."""
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_readme_commands_work_in_an_empty_folder(
    repository: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    place = shell("python -c 'import vpmoe; print(vpmoe.__file__)'", tmp_path, variables)
    assert place.startswith(variables["PYTHONPATH"])
    lines = commands((repository / "README.md").read_text())
    assert [line.split()[1] for line in lines] == ["data", "pretrain", "params"]
    shown = [shell(line, tmp_path, variables) for line in lines]
    assert "lm loss" in shown[1]
    assert "5,998,139,072" in shown[2]
    assert shell("golden --version", tmp_path, variables).startswith("golden ")


def test_a_preset_that_nobody_ships_is_named_with_those_that_are(
    variables: dict[str, str], tmp_path: Path
) -> None:
    line = "vpmoe params --config configs/vpmoe-small.toml 2>&1; test $? = 2"
    said = shell(line, tmp_path, variables)
    assert "no such preset" in said
    assert "configs/vpmoe-tiny.toml" in said
