"""The release's scripts: notes of the tag's version, refusals, both wheels of one version."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHANGELOG = """\
# Changelog

## [Unreleased]

- something to come

## [1.2.0] - 2026-12-01

- a case that sees windows

## [1.1.0] - 2026-11-01

- older
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a changelog, and stand-ins for `gh` and `python3 -m build`."""
    root, programs = tmp_path / "checkout", tmp_path / "bin"
    root.mkdir()
    programs.mkdir()
    subprocess.run(["git", "init", "--quiet", root], check=True)
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    (programs / "gh").write_text(
        '#!/bin/bash\necho "$@" >called\n'
        'while [ "$1" != --notes-file ]; do shift; done\ncp "$2" notes\n'
    )
    (programs / "python3").write_text(
        '#!/bin/bash\n[ "$2" = build ] || exit 0\nmkdir -p dist\n'
        "case ${!#} in validation) name=vpmoe_validation ;; *) name=vpmoe ;; esac\n"
        'touch "dist/$name-1.2.0-py3-none-any.whl"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    return root


def job(repository: Path, checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(checkout.parent / "bin"), os.environ["PATH"]])
    return subprocess.run(
        [repository / "ci" / "jobs" / words[0], *words[1:]],
        cwd=checkout,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_release_has_the_wheels_and_its_section_of_the_changelog(
    repository: Path, checkout: Path
) -> None:
    assert job(repository, checkout, "wheels.sh", "v1.2.0").returncode == 0
    assert job(repository, checkout, "release.sh", "v1.2.0", "dist").returncode == 0
    assert (checkout / "notes").read_text().strip() == "- a case that sees windows"
    called = (checkout / "called").read_text()
    assert called.startswith("release create v1.2.0 --verify-tag")
    assert called.split()[-2:] == [
        "dist/vpmoe-1.2.0-py3-none-any.whl",
        "dist/vpmoe_validation-1.2.0-py3-none-any.whl",
    ]


def test_wheels_of_another_version_are_refused(repository: Path, checkout: Path) -> None:
    done = job(repository, checkout, "wheels.sh", "v1.3.0")
    assert done.returncode == 2
    assert "is not of version 1.3.0" in done.stderr


def test_a_version_without_a_section_is_refused(repository: Path, checkout: Path) -> None:
    done = job(repository, checkout, "release.sh", "v1.3.0", "dist")
    assert done.returncode == 2
    assert '"## [1.3.0]"' in done.stderr
    assert not (checkout / "called").exists()
