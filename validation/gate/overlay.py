"""The base's cases and faults, laid over the head's packages that they are inside of.

A change must not edit the cases that judge it. Modules that the base declares inside of a package
(`my_training.cases`) are taken from the base's revision into a folder that stands first on the
module search path. The package's other modules are still the head's: a file `__init__.py` in the
folder joins the two. A module at the top level (`golden_cases`) is the head's, and the check is
INVALID where a case of the base is gone from it.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from validation.config import read_declaration
from validation.files import write_atomically
from validation.running.source import git

_JOINED = '''\
"""Joins the base's modules in this folder with the head's package of the same name."""

import pathlib
import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
for _folder in __path__[1:]:
    _file = pathlib.Path(_folder) / "__init__.py"
    if _file.exists():
        exec(compile(_file.read_text(), str(_file), "exec"))
        break
'''


def lay_declared_modules(root: Path, revision: str, folder: Path) -> None:
    """Puts the modules that a base declares in packages beside its declaration.

    Args:
        root: the head's checkout.
        revision: the base.
        folder: has the base's `pyproject.toml` or `golden.toml`; receives the modules.

    Raises:
        CaseError: the base's declaration is wrong.
        RepositoryError: there is no such revision.
    """
    declared = read_declaration(folder)
    if declared is None:
        return
    names = set(git(root, "ls-tree", "-r", "--name-only", revision).splitlines())
    inner = [module for module in (*declared.cases, *declared.faults) if "." in module]
    for module in dict.fromkeys(inner):
        place = module.replace(".", "/")
        for prefix in ("", "src/"):
            inside = prefix + place
            paths = [n for n in names if n == f"{inside}.py" or n.startswith(f"{inside}/")]
            if paths:
                _extract(root, revision, paths, prefix, folder)
                _join_parents(folder, module)
                break


def _extract(root: Path, revision: str, paths: Sequence[str], prefix: str, folder: Path) -> None:
    """Unpacks files of a revision, without the prefix."""
    command = ["git", "-C", str(root), "archive", revision, *sorted(paths)]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive.getmembers():
            if member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                path = folder / member.name[len(prefix) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content.read())


def _join_parents(folder: Path, module: str) -> None:
    *parents, _ = module.split(".")
    for depth in range(1, len(parents) + 1):
        package = folder.joinpath(*parents[:depth])
        # The harness is the base's whole, and so is a package that was taken whole.
        if not (package / "__init__.py").exists():
            write_atomically(package / "__init__.py", _JOINED.encode())
