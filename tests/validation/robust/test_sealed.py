"""The seal on what decides in a check."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from validation.goldens.sealed import Seal


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of goldens and a checkout."""
    goldens, sources = tmp_path / "goldens", tmp_path / "tree"
    for folder in (goldens / "cpu", sources / "package"):
        folder.mkdir(parents=True)
    (goldens / "cpu" / "golden.json").write_text("{}")
    (sources / "package" / "module.py").write_text("x = 1\n")
    return goldens, sources


def test_an_untouched_seal_holds(folders: tuple[Path, Path]) -> None:
    assert Seal(folders[:1], folders[1:]).broken() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("goldens/cpu/golden.json", "{ }"),
        ("goldens/cpu/other.json", "{}"),
        ("goldens/cpu/golden.json", None),
        ("tree/package/module.py", "x = 2\n"),
        ("tree/numpy.py", ""),
        (f"tree/numpy{EXTENSION_SUFFIXES[0]}", ""),
        ("tree/package/module.py", None),
    ],
)
def test_what_changes_comes_or_goes_breaks_it(
    folders: tuple[Path, Path], name: str, content: str | None
) -> None:
    seal, path = Seal(folders[:1], folders[1:]), folders[0].parent / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert seal.broken() == [path]


def test_a_link_in_place_of_a_golden_breaks_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    seal, path = Seal(folders[:1]), folders[0] / "cpu" / "golden.json"
    copy = tmp_path / "copy.json"
    copy.write_text(path.read_text())
    path.unlink()
    path.symlink_to(copy)
    assert seal.broken() == [path]


def test_data_that_the_bases_own_run_leaves_breaks_nothing(folders: tuple[Path, Path]) -> None:
    seal = Seal(folders[:1], folders[1:])
    (folders[1] / "data.bin").write_bytes(b"tokens")
    assert seal.broken() == []
