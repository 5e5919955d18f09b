"""A checkout's files, and which of them a Python file imports or names."""

from __future__ import annotations

import ast
import functools
import posixpath
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from validation.running.source import content_of, listed_files

# Where top-level packages and modules are looked for.
_ROOTS = ("", "src/")
_LONGEST_NAME = 300


class Tree:
    """The files of a checkout as they are now.

    Args:
        root: a git repository, of which untracked files count that git does not ignore, or a plain
            folder, of which all files do.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if (root / ".git").exists():
            found = listed_files(root)
        else:
            found = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
        self.names = set(found)
        self._contents: dict[str, bytes | None] = {}
        self._mentioned: dict[str, Sequence[str]] = {}
        self._folders = {parent for name in self.names for parent in _parents(name)}
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_last[_last_of(name)].append(name)

    def content(self, name: str) -> bytes | None:
        """What a file holds, see `validation.running.source.content_of`."""
        if name not in self._contents:
            self._contents[name] = content_of(self.root / name)
        return self._contents[name]

    def module(self, name: str) -> str | None:
        """The file of a module by its full name, wherever in the tree its package is."""
        found = self._modules(name, "", imported=True)
        tail = name.replace(".", "/")
        return next((f for f in found if f.endswith((f"{tail}.py", f"{tail}/__init__.py"))), None)

    def named(self, word: str) -> list[str]:
        """The files that a setting names: a module, a file, or all of a folder."""
        found = self._modules(word.partition(":")[0], "", imported=False)
        for path in self._paths(word):
            found += self.below(path) if path.endswith("/") else [path]
        return found

    def below(self, folder: str) -> list[str]:
        """The files in a folder, whose name ends in `/`, and in those inside of it."""
        return [name for name in self.names if name.startswith(folder)]

    def mentioned(self, name: str) -> Sequence[str]:
        """Files that a Python file imports, lazily or not, or names in a string.

        A folder that it names so is there with a `/` at its end.
        """
        if name not in self._mentioned:
            imports, strings = words_of(self.content(name) or b"", _package(name))
            folder = posixpath.dirname(name)
            found = [f for word in imports for f in self._modules(word, folder, imported=True)]
            for word in strings:
                found += self._modules(word.partition(":")[0], folder, imported=False)
                found += [p for p in self._paths(word) if "/" in p.rstrip("/") or p in self.names]
            self._mentioned[name] = tuple(dict.fromkeys(found))
        return self._mentioned[name]

    def _modules(self, name: str, folder: str, *, imported: bool) -> list[str]:
        """A module's file, after the `__init__.py` of each package around it.

        Looked for at the root and under `src/`; what is imported also beside the importing file, as
        a script sees it, then wherever a path ends like it, for packages that are installed from
        elsewhere in the repository.
        """
        inside = name.endswith(".")  # the constant part of f"package.{name}"
        parts = name.rstrip(".").split(".")
        if not all(part.isidentifier() for part in parts):
            return []
        places = [f"{'/'.join(parts[:n])}/__init__.py" for n in range(1, len(parts) + 1)]
        places.append("/".join(parts) + ".py")
        found = [root + place for root in _ROOTS for place in places if root + place in self.names]
        if inside:
            below = [n for root in _ROOTS for n in self.below(f"{root}{'/'.join(parts)}/")]
            found += [name for name in below if name.endswith(".py")]
        if found or not imported or parts[0] in sys.stdlib_module_names:
            return found
        beside = [f"{folder}/{place}" for place in places]
        found = [place for place in beside if place in self.names]
        return found or self._elsewhere(places[-2:], len(parts))

    def _elsewhere(self, places: Sequence[str], depth: int) -> list[str]:
        found = []
        for place in places:
            for name in self._by_last[_last_of(place)]:
                if name.endswith("/" + place):
                    found.append(name)
                    packages = _parents(name)[:depth]
                    found += [p for f in packages if (p := f"{f}/__init__.py") in self.names]
        return found

    def _paths(self, word: str) -> list[str]:
        if len(word) > _LONGEST_NAME or "\n" in word or not word:
            return []
        path = posixpath.normpath(word)
        if path in self.names:
            return [path]
        return [path + "/"] if path in self._folders else []


def _parents(name: str) -> list[str]:
    """The folders around a file, the innermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _last_of(name: str) -> str:
    """What an index of files by the ends of their paths has for a file."""
    parts = name.split("/")
    return "/".join(parts[-2:]) if parts[-1] == "__init__.py" else parts[-1]


def _package(name: str) -> str:
    """The package that relative imports of a file start from."""
    for root in sorted(_ROOTS, key=len, reverse=True):
        name = name.removeprefix(root)
    return posixpath.dirname(name).replace("/", ".")


@functools.lru_cache(maxsize=4096)  # the cases, and the checks of one process, share most files
def words_of(content: bytes, package: str) -> tuple[Sequence[str], Sequence[str]]:
    """Full names of the modules that a file imports, and its strings."""
    try:
        parsed = ast.parse(content)
    except (SyntaxError, ValueError):
        return (), ()  # every case that imports it fails, whichever of them is chosen
    imports: dict[str, None] = {}
    strings: dict[str, None] = {}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(dict.fromkeys(_imported(node, package)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if text.startswith(".") and not text.startswith(("./", "../")):
                level = len(text) - len(text.lstrip("."))  # import_module(".name", __package__)
                text = ".".join(filter(None, (_above(package, level), text.lstrip("."))))
            strings[text] = None
    return tuple(imports), tuple(strings)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    above = _above(package, node.level) if node.level else ""
    module = ".".join(filter(None, (above, node.module)))
    if module:
        yield module
    yield from (".".join(filter(None, (module, alias.name))) for alias in node.names)


def _above(package: str, level: int) -> str:
    """The package that `level` dots mean inside of a package."""
    parts = package.split(".")
    return ".".join(parts[: max(0, len(parts) - level + 1)])
