"""A checkout at a path with a colon, where PYTHONPATH splits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from validation.config import CaseError, python_path


@pytest.fixture(autouse=True)
def _fresh() -> None:
    python_path.entry.cache_clear()


def test_every_folder_can_be_imported_from(tmp_path: Path) -> None:
    folders = [tmp_path / "plain", tmp_path / "run:7", tmp_path / "a:b:", tmp_path / ":"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"module{number}.py").write_text("")
    value = python_path.python_path("/somewhere", [str(f) for f in folders])
    parts = value.split(os.pathsep)
    assert parts[:2] == ["/somewhere", str(folders[0])]
    assert [Path(part).resolve() for part in parts[1:]] == folders
    code = (
        "import module0, module1, module2, module3, sys; from validation.config import python_path;"
        "python_path.real_entries(); print(*sys.path, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([value, *sys.path])}
    words = [sys.executable, "-P", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert {str(folder) for folder in folders} <= set(done.stdout.splitlines())


def test_a_link_is_made_where_its_path_has_no_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "t:mp"
    odd.mkdir()
    monkeypatch.setattr(python_path.tempfile, "tempdir", str(odd))
    assert os.pathsep not in python_path.entry(str(odd))
    monkeypatch.setattr(python_path, "_OTHERS", ())
    python_path.entry.cache_clear()
    with pytest.raises(CaseError, match="set TMPDIR to a folder without"):
        python_path.entry(str(odd))


def test_golden_works_in_a_checkout_at_a_path_with_a_colon(
    golden_project: Any, tmp_path: Path
) -> None:
    project = golden_project.copy(tmp_path / "run:7, of ada" / "repository:")
    for words in (["--json"], ["--judge", "HEAD", "--json"], ["--against", "HEAD", "--json"]):
        answer = project.golden("check", "plain_seed", *words)
        assert answer.code == 0, answer.out + answer.err
        assert answer.json()["verdict"] == "PASS"
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    answer = project.golden("explain", "--ops", "plain_seed", "--against", "HEAD", "--steps", "1")
    assert answer.code == 1, answer.out + answer.err
    assert "  plain_loop.py:" in answer.out or " plain_loop.py:" in answer.out
