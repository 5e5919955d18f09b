"""What the documents name exists: files, modules and their attributes, messages, rooms."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    REPOSITORY / "examples" / "own-loop" / "README.md",
]
_TOPS = "validation|vpmoe|benchmarks"
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(
    r"(?:\.?[\w-]+/)+[\w.-]*\.(?:py|md|toml|sh|json|yml|yaml|sbatch|jsonl)|[\w-]+\.(?:toml|ini|txt)"
)
_DOTTED = re.compile(rf"(?:{_TOPS})(?:\.\w+)+")
# Groups of entry points, which are no modules.
_GROUPS = {"validation.cases", "validation.faults"}
# Folders that commands of the documents write to, and files of a reader's own.
_MADE = ("runs/", "out/", "reports/", "build/", "mlruns/", "exported/", "DIR/", "wheelhouse/")
_OF_READERS = {"golden.toml", "freeze.txt", "log.txt", "goldens/quarantine.json"}


def _within(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))


def _exists(name: str, document: Path) -> bool:
    """Whether a path is one of the repository, of vpmoe, or beside the document."""
    roots = (REPOSITORY, REPOSITORY / "vpmoe", REPOSITORY / "docs", document.parent)
    return any((root / name).exists() for root in roots)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_within)
def test_paths_exist(document: Path) -> None:
    named = {code for code in _CODE.findall(document.read_text()) if _PATH.fullmatch(code)}
    kept = {n for n in named if not n.startswith(_MADE) and n not in _OF_READERS}
    assert [name for name in sorted(kept) if not _exists(name, document)] == []


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=_within)
def test_dotted_names_exist(document: Path) -> None:
    named = {code for code in _CODE.findall(document.read_text()) if _DOTTED.fullmatch(code)}
    assert [name for name in sorted(named - _GROUPS) if not _resolves(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_within)
def test_relative_links_lead_to_files(document: Path) -> None:
    """Also those that the site's build does not see, such as README's."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert [link for link in missing if not link.endswith("-help.md")] == []


def test_the_tour_has_every_room_of_the_harness() -> None:
    tour = (REPOSITORY / "docs" / "tour.md").read_text()
    rooms = {path.parent.name for path in (REPOSITORY / "validation").glob("*/__init__.py")}
    assert [room for room in sorted(rooms) if f"**{room}**" not in tour] == []


def _texts_of_the_code() -> list[str]:
    """Each text of the code that can be part of a message, `\\0` for what it is filled with."""
    found = []
    for package in ("validation", "vpmoe"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                    found.append("".join(map(str, parts)))
    return found


def test_the_messages_of_troubleshooting_are_the_codes() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) > 20
    texts = _texts_of_the_code()
    pieces = {
        (message, piece.strip(" ;:,("))
        for message in messages
        for piece in message.split("...")
        if len(piece.strip(" ;:,(")) > 3
    }
    assert [pair for pair in sorted(pieces) if not any(pair[1] in text for text in texts)] == []
