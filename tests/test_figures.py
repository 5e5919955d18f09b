"""Measured figures of the documents: those of their JSON results, or marked with their origin.

`benchmarks/figures.py` generates what stands between `<!-- =NAME -->` and `<!-- / -->`. A section
with other measured figures says what they were measured with: versions, machine, date.
"""

from __future__ import annotations

import re

import pytest

from benchmarks import figures

# Pages that report measurements; elsewhere a number with a unit is a setting or a definition.
MEASURED = ("README.md", "benchmarks.md", "performance.md", "optimizer.md")
_GENERATED = re.compile(r"<!-- =[\w-]+ -->.*?<!-- / -->", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"\d(?: ?(?:ms|GiB|tokens/s|M tokens)\b|\.\d+ s\b|\.\d+ %)")
_ORIGIN = re.compile(r"Measured [^\n]*?(?:torch|Python) \d[^|]*?20\d\d-\d\d-\d\d", re.DOTALL)


@pytest.mark.parametrize("path", figures.documents(), ids=lambda path: path.stem)
def test_figures_are_those_of_their_results(path) -> None:  # type: ignore[no-untyped-def]
    text = path.read_text()
    assert figures.renewed(text, path) == text, "run: python -m benchmarks.figures"


def test_every_figure_is_used() -> None:
    text = "".join(path.read_text() for path in figures.documents())
    assert [name for name in figures.FIGURES if f"<!-- ={name} -->" not in text] == []


def test_a_mark_without_a_figure_is_refused() -> None:
    with pytest.raises(SystemExit, match="there is no figure 'speed'"):
        figures.renewed("<!-- =speed -->9<!-- / -->", figures.REPOSITORY / "README.md")


def test_other_figures_say_where_they_are_from() -> None:
    """In each section with measured figures of its own, or at the start of its page."""
    silent = []
    for path in figures.documents():
        if path.name not in MEASURED:
            continue
        text = _FENCE.sub("", _GENERATED.sub("", path.read_text()))
        start, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        if _ORIGIN.search(start):
            continue
        silent += [
            f"{path.name}: {section.splitlines()[0]}: {_FIGURE.search(section)[0]!r}"  # type: ignore[index]
            for section in (start, *sections)
            if _FIGURE.search(section) and not _ORIGIN.search(section)
        ]
    assert silent == []
