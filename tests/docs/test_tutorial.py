"""The tutorial, walked from its first command to its last; its example is that of own-loop.md."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILE = re.compile(r"`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_tutorial_does_what_it_says(
    repository: Path,
    blocks: Callable[[str], list[Any]],
    new_shell: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "examples").symlink_to(repository / "examples")
    shell, ran = new_shell(checkout), 0
    for block in blocks((repository / "docs" / "tutorial.md").read_text()):
        if block.mark.startswith("not run by a test"):
            continue
        if block.kind == "text":
            for line in block.text.splitlines():
                assert " ".join(line.split()) in " ".join(shell.said.split()), shell.said
            continue
        shell.said = ""
        for line in block.lines:
            assert shell.run(line.text) == line.status, f"{line.text}\n{shell.said}"
            ran += 1
    assert ran >= 18


def test_the_example_is_the_one_of_the_page(repository: Path) -> None:
    page = (repository / "docs" / "own-loop.md").read_text()
    files = dict(_FILE.findall(page))
    example = repository / "examples" / "own-loop"
    for name in ("loop.py", "golden_cases.py"):
        assert (example / name).read_text() == files[name], f"{name} differs from own-loop.md's"
    assert tomllib.loads((example / "pyproject.toml").read_text()) == tomllib.loads(
        files["pyproject.toml"]
    )
