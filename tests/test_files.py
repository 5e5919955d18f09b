"""Each half writes atomically on its own, since neither imports the other; both must do the same.

The training half runs without the harness, and the harness without any model's code. A third
package for fifteen lines would be more to keep than the two functions that this file holds equal.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import validation.files
import vpmoe.files

Writer = Callable[[Path, bytes], None]
both = pytest.mark.parametrize(
    "write", [vpmoe.files.write_atomically, validation.files.write_atomically]
)


@both
def test_a_file_is_replaced_whole_and_readable(write: Writer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write(path, b"first")
    write(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o444 == 0o444
    assert list(path.parent.iterdir()) == [path]


@both
def test_a_failure_leaves_the_old_content_and_nothing_else(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, b"new")
    assert caught.value.filename == str(path), "which file found no room"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_halves_import_each_other_in_one_place_alone(repository: Path) -> None:
    """vpMoE's cases declare themselves to the harness; nothing else crosses the border."""
    crossing = set()
    for half, other in (("vpmoe", "validation"), ("validation", "vpmoe")):
        for path in (repository / half).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                )
                if any(name.split(".")[0] == other for name in names):
                    crossing.add(path.relative_to(repository))
    assert {path.parts[:2] for path in crossing} == {("vpmoe", "cases")}
