"""Writes the pages of the reference that are generated: what every command's `--help` prints.

    python ci/reference.py [FOLDER]

The pages go to docs/reference, where git ignores them and the site (`ci/jobs/docs.sh`) finds them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
_COLUMNS = "92"  # as wide as a code block of the site


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of all its commands, in the order of their declaration."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def page(title: str, root: argparse.ArgumentParser, left_out: frozenset[str]) -> str:
    """The help of a program and of each of its commands, as one page of Markdown."""
    parts = [f"# {title}\n", "What `--help` prints, command by command.\n"]
    for parser in parsers(root):
        if parser.prog not in left_out:
            parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def pretrain_page() -> str:
    """The help of `vpmoe pretrain`, which Megatron's parser prints once its modules are loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "vpmoe.cli", "pretrain", "--help"],
        cwd=_REPOSITORY,
        env={**os.environ, "COLUMNS": _COLUMNS, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"vpmoe pretrain --help: exit {done.returncode}\n{done.stderr[-2000:]}")
    head = "# vpmoe pretrain, every flag\n\nMegatron's flags and vpMoE's, as `--help` prints them."
    return f"{head}\n\n```text\n{done.stdout.strip()}\n```\n"


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=_REPOSITORY / "docs" / "reference",
        help="where the pages go (docs/reference)",
    )
    folder = parser.parse_args().folder
    os.environ["COLUMNS"] = _COLUMNS
    sys.path.insert(0, str(_REPOSITORY))
    from validation.cli.program import build_parser
    from vpmoe.cli import _parser

    pages = {
        "golden-help": page("golden, every command", build_parser()[0], frozenset()),
        "vpmoe-help": page("vpmoe, every command", _parser(), frozenset({"vpmoe pretrain"})),
        "pretrain-help": pretrain_page(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
