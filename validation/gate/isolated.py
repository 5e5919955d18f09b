"""Starts a program of the judge, which sees the base's sources and the environment alone.

    python -I -S validation/gate/isolated.py HEAD BASE PROGRAM ARGUMENT...

PROGRAM is the name of a module or a Python file, HEAD the checkout that is judged, which stays the
working directory, BASE a checkout of the revision that judges. Nothing of HEAD can be imported:
neither from the working directory nor through PYTHONPATH or an editable installation, and no
`sitecustomize` runs, whosever it is. What a harness imports comes from BASE, where that has one,
and from installed packages.

This file must import nothing but the standard library before the search path is set.
"""

from __future__ import annotations

import os
import runpy
import site
import sys
from pathlib import Path


def main(head: str, base: str, program: str, *arguments: str) -> None:
    """Sets the module search path and becomes the program."""
    library = list(sys.path)
    # Site's own way to find an environment's packages, without what would run before this program.
    site.execsitecustomize = site.execusercustomize = lambda: None
    site.main()
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    packages = [entry for entry in sys.path if entry not in library]
    outside = [entry for entry in (*given, *packages) if _is_outside(entry, head)]
    sources = [str(path) for path in (Path(base), Path(base, "src")) if path.is_dir()]
    sys.path[:] = [*sources, *library, *outside]
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))  # as Python has it for a script
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _is_outside(entry: str, head: str) -> bool:
    """Whether a folder is no code of the checkout; an environment inside of it is none."""
    path, root = Path(entry).resolve(), Path(head).resolve()
    if not path.is_relative_to(root):
        return True
    inside = path.relative_to(root).parts
    return not {"site-packages", "dist-packages"}.isdisjoint(inside)


if __name__ == "__main__":
    main(*sys.argv[1:])
